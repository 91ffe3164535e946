"""What every training shares: state, pace and command line."""
