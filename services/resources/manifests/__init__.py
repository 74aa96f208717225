"""Manifests as people write them -> checked messages, or refusals that name document, kind, name and path.

Read `document.py`, then the module of a kind, which its row in services/resources/kinds names. Nothing valid is passed
over in silence where it would change what packets do: it is done, or refused as "not supported yet".
"""
