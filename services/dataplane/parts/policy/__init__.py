"""Who may speak to whom.

- `entries`      from rules and selectors to the entries of the policy map
- `named_ports`  where entries for named ports hold
"""
