"""Keeping worker processes alive: start, watch, replace, stop. Not: what they compute, nor where they are placed."""
