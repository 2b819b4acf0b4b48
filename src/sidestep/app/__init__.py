"""The web page: one photo, a camera to drag, the views that it would have taken."""
