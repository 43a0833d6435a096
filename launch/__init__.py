"""How processes start: accelerate configurations, and files for cluster schedulers."""
