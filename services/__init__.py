"""The services of Plexus: one folder, one process, one family of subjects. None imports another; all import `bus`."""
