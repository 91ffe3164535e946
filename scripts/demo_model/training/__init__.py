"""What all training runs share: state, learning rate and command line."""
