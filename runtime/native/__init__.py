"""Operators of our own for ONNX Runtime's CPU provider, in C++: built once, registered with a session's options."""
