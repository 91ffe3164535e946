"""Handles one request for an answer, from its body to its answer, which is a single response or a stream.

Code that collects, formats or measures the answer of one request belongs in this package. `gateway.api` defines the
contents of the body and of the answer. Code that concerns all requests together, such as admission, is outside this
package.
"""
