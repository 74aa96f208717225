"""Files of this node: `journal` keeps its endpoints, `statefile` what was heard last; both of `records`."""
