"""From a folder of images and a teacher to a verified, exported student, in resumable stages."""
