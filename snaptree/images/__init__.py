"""What image files say: qcow2 headers and snapshot tables, backing chains, allocated bytes. Nothing is written, probed or locked."""
