"""The node: control client, underlay, data plane and pump put together, behind one small class."""
