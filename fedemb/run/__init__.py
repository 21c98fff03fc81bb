"""Where a run happens: in this process, on Flower's simulation engine, or deployed."""
