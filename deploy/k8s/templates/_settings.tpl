{{/* Written by `make docs` (tools/chart.py); do not edit it by hand. */}}
{{- define "plexus.control" -}}["resources", "identity", "ipam", "lb", "policy", "l2announce"]{{- end -}}
{{- define "plexus.node" -}}["dataplane"]{{- end -}}
{{- define "plexus.never-outside" -}}["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"]{{- end -}}
{{- define "plexus.users" -}}{"dataplane": "node-"}{{- end -}}

{{- define "plexus.settings.resources" -}}
{{- $v := (dig "nodePort" "range" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_NODE_PORT_RANGE
  value: {{ $v | toString | quote }}
{{- end }}
{{- end -}}

{{- define "plexus.settings.identity" -}}
{{- end -}}

{{- define "plexus.settings.ipam" -}}
{{- $v := (dig "ipv4" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_IPV4_ENABLED
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "ipv6" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_IPV6_ENABLED
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "ipam" "mode" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_IPAM_MODE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "ipam" "operator" "clusterPoolIPv4MaskSize" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CLUSTER_POOL_MASK
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "ipam" "operator" "clusterPoolIPv6MaskSize" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CLUSTER_POOL_MASK6
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- end -}}

{{- define "plexus.settings.lb" -}}
{{- end -}}

{{- define "plexus.settings.policy" -}}
{{- end -}}

{{- define "plexus.settings.l2announce" -}}
{{- $v := (dig "l2announcements" "leaseDuration" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_LEASE_DURATION
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "l2announcements" "leaseRenewDeadline" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_LEASE_RENEW_DEADLINE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "l2announcements" "leaseRetryPeriod" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_LEASE_RETRY_PERIOD
  value: {{ $v | toString | quote }}
{{- end }}
{{- end -}}

{{- define "plexus.settings.dataplane" -}}
{{- $v := (dig "ipv4" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_IPV4_ENABLED
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "ipv6" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_IPV6_ENABLED
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "routingMode" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_ROUTING_MODE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "tunnelProtocol" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_TUNNEL_PROTOCOL
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "tunnelPort" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]" "0")) }}
- name: PLEXUS_TUNNEL_PORT
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "underlayProtocol" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_UNDERLAY_PROTOCOL
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "MTU" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]" "0")) }}
- name: PLEXUS_MTU
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "devices" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_DEVICES
  value: {{ kindIs "slice" $v | ternary (join " " $v) ($v | toString) | quote }}
{{- end }}
{{- $v := (dig "autoDirectNodeRoutes" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_AUTO_DIRECT_NODE_ROUTES
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "directRoutingSkipUnreachable" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_DIRECT_ROUTING_SKIP_UNREACHABLE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "endpointRoutes" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_ENDPOINT_ROUTES
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "hostLegacyRouting" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_HOST_LEGACY_ROUTING
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "enableTCX" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_ENABLE_TCX
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "serviceNoBackendResponse" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_SERVICE_NO_BACKEND_RESPONSE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "nodePort" "range" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_NODE_PORT_RANGE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "l2announcements" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_ANNOUNCEMENTS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "l2announcements" "leaseDuration" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_LEASE_DURATION
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "l2announcements" "leaseRenewDeadline" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_LEASE_RENEW_DEADLINE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "l2announcements" "leaseRetryPeriod" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_L2_LEASE_RETRY_PERIOD
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "socketLB" "hostNamespaceOnly" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_SOCKET_LB_HOST_NAMESPACE_ONLY
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "socketLB" "terminatePodConnections" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_TERMINATE_POD_CONNECTIONS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "lb-sock-terminate-all-protos" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_TERMINATE_ALL_PROTOCOLS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "policyEnforcementMode" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_POLICY_ENFORCEMENT_MODE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "policyAuditMode" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_POLICY_AUDIT_MODE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "enableIPv4Masquerade" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_MASQUERADE
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "enableIPv6Masquerade" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_MASQUERADE6
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-masquerade-ports" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_MASQUERADE_PORTS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "installNoConntrackIptablesRules" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_NO_CONNTRACK_RULES
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "mapDynamicSizeRatio" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_MAP_DYNAMIC_SIZE_RATIO
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "ctTcpMax" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CT_TCP_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "ctAnyMax" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CT_ANY_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "natMax" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_NAT_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-sock-rev-map-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_SOCK_REVERSE_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "policyMapMax" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_POLICY_MAP_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "bpf" "lbMapMax" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_LB_MAP_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-lb-service-map-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_SERVICES_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-lb-service-backend-map-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_BACKENDS_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-fragments-map-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_FRAGMENTS_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-endpoints-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_ENDPOINTS_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-ipcache-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_IPCACHE_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-policy-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_POLICY_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-named-ports-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_NAMED_PORTS_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-lb-source-range-map-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_SOURCE_RANGES_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-masq-exclude-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_MASQ_EXCLUDE_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-lb-affinity-map-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_AFFINITY_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-choices-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CHOICES_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "plexus-sock-choices-max" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_SOCK_CHOICES_MAX
  value: {{ $v | int64 | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-ct-timeout-regular-tcp" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CT_TCP_SECONDS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-ct-timeout-regular-tcp-syn" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CT_TCP_SYN_SECONDS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-ct-timeout-regular-tcp-fin" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CT_TCP_FIN_SECONDS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "extraConfig" "bpf-ct-timeout-regular-any" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CT_ANY_SECONDS
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "conntrackGCInterval" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CONNTRACK_GC_INTERVAL
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "conntrackGCMaxInterval" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_CONNTRACK_GC_MAX_INTERVAL
  value: {{ $v | toString | quote }}
{{- end }}
{{- $v := (dig "hubble" "enabled" "" .Values.AsMap) }}
{{- if not (has ($v | toString) (list "" "<nil>" "[]")) }}
- name: PLEXUS_HUBBLE_ENABLED
  value: {{ $v | toString | quote }}
{{- end }}
{{- end -}}

{{- define "plexus.refused" -}}
{{- if not (has ((dig "bandwidthManager" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "bandwidthManager.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "egressGateway" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "egressGateway.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "encryption" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "encryption.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "envoy" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "envoy.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "externalIPs" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "externalIPs.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "hostFirewall" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "hostFirewall.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "hubble" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "hubble.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "hubble" "relay" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "hubble.relay.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "hubble" "ui" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "hubble.ui.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "ingressController" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "ingressController.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "l7Proxy" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "l7Proxy: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "loadBalancer" "acceleration" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "loadBalancer.acceleration: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "loadBalancer" "algorithm" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "loadBalancer.algorithm: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "loadBalancer" "mode" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "loadBalancer.mode: is not supported yet; remove it" }}
{{- end }}
{{- if not (has ((dig "nodePort" "enabled" "" .Values.AsMap) | toString) (list "" "<nil>" "false" "[]")) }}
{{- fail "nodePort.enabled: is not supported yet; remove it" }}
{{- end }}
{{- if has ((dig "bpf" "datapathMode" "" .Values.AsMap) | toString) (list "netkit" "netkit-l2") }}
{{- fail "bpf.datapathMode: use veth; the others are not supported yet" }}
{{- end }}
{{- if has ((dig "ipam" "mode" "" .Values.AsMap) | toString) (list "multi-pool") }}
{{- fail "ipam.mode: use cluster-pool or kubernetes; the others are not supported yet" }}
{{- end }}
{{- if not (has ((dig "kubeProxyReplacement" "" .Values.AsMap) | toString) (list "" "<nil>" "true")) }}
{{- fail "kubeProxyReplacement: is true only, so far: leaving Services to kube-proxy is not supported yet" }}
{{- end }}
{{- end -}}
