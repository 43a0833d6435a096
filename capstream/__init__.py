"""The console command `capstream`, and the recipes that are installed with it."""
