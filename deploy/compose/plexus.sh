#!/bin/sh
# `plexus`, as the operator.
PLEXUS_BUS_PASSWORD=$(cat /etc/plexus/accounts/operator/password)
export PLEXUS_BUS_PASSWORD
exec plexus "$@"
