"""How processes start: the launcher, accelerate configurations, and files for schedulers."""
