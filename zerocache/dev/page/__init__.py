"""The files of the demo page, served as they are: HTML, CSS and ES modules without a build step."""
