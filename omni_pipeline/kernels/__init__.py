"""What compiles GPU kernels at their first use, found or made. Not: the kernels."""
