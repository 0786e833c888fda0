"""What bnjax costs, measured side by side with its peers: `python -m experiments.bench --quick`."""
