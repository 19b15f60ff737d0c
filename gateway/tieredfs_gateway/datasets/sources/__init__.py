"""File formats: each says what is in a file (`look`) and reads a part of it, behind one narrow protocol (`protocol`)."""
