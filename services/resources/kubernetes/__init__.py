"""Kubernetes as the source: what its API server has becomes the messages that `plexus apply` makes of manifests.

One replica watches, the one that holds the lease "resources"; the other stands by and has no connection. Kinds, and how
a manifest of each is read, are the rows of `services/resources/kinds/`.

"The API server does not say" and "it is not there" are two things. A resource goes when a watch says that it was
deleted, or when a whole list, read from the API server's own log and no older than what was seen before, lacks it.
Whatever else happens (no answer, 429, 500, a kind that is not installed, a list cut short, a server that went back to
an older state, another cluster's server) nothing goes, and the check "kubernetes" of this service says what is wrong.

When the API server is away: nothing new is learned. All that is there goes on.

Read in this order:
    reading.py    an object -> a resource, with what is not done as warnings. Policies that cannot be kept are closed.
    pending.py    what was seen and is not in the log yet; the latest of each object.
    mirror.py     (what is in the log, what was seen) -> steps.
    api.py        requests to the API server: lists in pages, watches, statuses, events.
    following.py  list and watch of one kind, for ever.
    statuses.py   what an object's status should be.
    telling.py    statuses and Events, written back.
    source.py     wiring of all these.
"""
