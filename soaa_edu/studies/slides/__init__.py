"""The slides' experiments: Newton to Hessian-free Gauss-Newton, on quadratics and on MNIST."""
