"""What all trainings share: state, learning rate and command line."""
