"""What image files say: headers, snapshot tables, backing chains, bytes. Nothing is written, probed or locked."""
