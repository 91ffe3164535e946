"""What stands in for SGLang's compiled kernels on a machine that has none of them: the same operations in torch."""
