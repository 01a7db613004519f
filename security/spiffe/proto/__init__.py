"""Published messages of SPIFFE and SPIRE, and what is generated from them."""
