{{- define "plexus.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "plexus.labels" -}}
app.kubernetes.io/part-of: plexus
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{ include "plexus.selector" . }}
{{- end -}}

{{- define "plexus.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{/* Where the bus runs, as JSON: what was said, what it was until now, or the first node of the control plane. It keeps
its log there, so it stays there. */}}
{{- define "plexus.bus" -}}
{{- $bus := .Values.bus -}}
{{- if not $bus.embedded -}}
{{- if not $bus.url }}{{ fail "bus.url: say where the bus is, or set bus.embedded=true" }}{{ end -}}
{{- dict "url" $bus.url "node" "" "address" "" | toJson -}}
{{- else -}}
{{- $was := (lookup "v1" "ConfigMap" .Release.Namespace "plexus-bus").data | default dict -}}
{{- $node := $bus.node | default $was.node -}}
{{- $address := $bus.address -}}
{{- if and (not $address) $was.node (eq $was.node $node) }}{{ $address = $was.address }}{{ end -}}
{{- if not (and $node $address) -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- if and (not $node) (or (hasKey $labels "node-role.kubernetes.io/control-plane") (hasKey $labels "node-role.kubernetes.io/master")) -}}
{{- $node = .metadata.name -}}
{{- end -}}
{{- if and (eq .metadata.name ($node | default "")) (not $address) -}}
{{- range .status.addresses }}{{ if and (not $address) (eq .type "InternalIP") }}{{ $address = .address }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $node }}{{ fail "bus.node: name the node that the bus is to run on (and bus.address); no control plane node can be seen" }}{{ end -}}
{{- if not $address }}{{ fail (printf "bus.address: say by which address others reach the node %s" $node) }}{{ end -}}
{{- $host := contains ":" $address | ternary (printf "[%s]" $address) $address -}}
{{- dict "url" (printf "nats://%s:%d" $host (int $bus.port)) "node" $node "address" $address | toJson -}}
{{- end -}}
{{- end -}}

{{- define "plexus.has-authority" -}}
{{- if and .Values.bus.tls.enabled (or .Values.bus.embedded .Values.bus.tls.authority) }}yes{{ end -}}
{{- end -}}

{{/* What every service is told of the bus, the API server's place and its own. `user` is who it is. */}}
{{- define "plexus.environment" -}}
{{- $bus := include "plexus.bus" .root | fromJson -}}
- name: PLEXUS_BUS_URL
  value: {{ $bus.url | quote }}
- name: PLEXUS_BUS_USER
  value: {{ .user | quote }}
- name: PLEXUS_BUS_PASSWORD_FILE
  value: /etc/plexus/account/password
{{- if include "plexus.has-authority" .root }}
- name: PLEXUS_BUS_TLS_CA
  value: /etc/plexus/authority/ca.crt
{{- end }}
- name: PLEXUS_HTTP
  value: {{ printf "%s:%d" (include "plexus.listen" .root) (int .port) | quote }}
- name: PLEXUS_LOG_LEVEL
  value: {{ .root.Values.debug.enabled | ternary "debug" "info" }}
{{- end -}}

{{- define "plexus.listen" -}}
{{- if not .Values.prometheus.enabled -}}127.0.0.1
{{- else if .Values.ipv4.enabled -}}0.0.0.0
{{- else -}}[::]
{{- end -}}
{{- end -}}

{{/* A check that is not well ends nobody: the bus or the API server may be away for long. */}}
{{- define "plexus.probes" -}}
{{- $host := .root.Values.prometheus.enabled | ternary "" "127.0.0.1" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ .port }}{{ with $host }}, host: {{ . }}{{ end }}}
  periodSeconds: 2
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /livez, port: {{ .port }}{{ with $host }}, host: {{ . }}{{ end }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}{{ with $host }}, host: {{ . }}{{ end }}}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{- define "plexus.annotations" -}}
{{- if .root.Values.prometheus.enabled }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- if .root.Values.rollOutCiliumPods }}
plexus/values: {{ .root.Values | toJson | sha256sum }}
{{- end }}
{{- end -}}

{{- define "plexus.authority-mount" -}}
{{- if include "plexus.has-authority" . }}
- {name: authority, mountPath: /etc/plexus/authority, readOnly: true}
{{- end }}
{{- end -}}

{{- define "plexus.authority-volume" -}}
{{- if include "plexus.has-authority" . }}
- name: authority
  configMap: {name: plexus-authority}
{{- end }}
{{- end -}}

{{/* Settings that follow from several values. "" as a value: there is none of it. */}}
{{- define "plexus.decided.ipam" -}}
{{- range $family, $suffix := dict "4" "" "6" "6" }}
{{- $on := dig (printf "ipv%s" $family) "enabled" false $.Values.AsMap }}
- name: PLEXUS_CLUSTER_POOL_CIDRS{{ $suffix }}
  value: {{ $on | ternary (include "plexus.pools" (dict "root" $ "family" $family)) "" | quote }}
{{- end }}
{{- end -}}

{{- define "plexus.pools" -}}
{{- $pools := dig "ipam" "operator" (printf "clusterPoolIPv%sPodCIDRList" .family) "" .root.Values.AsMap -}}
{{- kindIs "slice" $pools | ternary (join "," $pools) ($pools | toString) -}}
{{- end -}}

{{- define "plexus.decided.services" -}}
{{- range $family, $suffix := dict "4" "" "6" "6" }}
{{- $on := dig (printf "ipv%s" $family) "enabled" false $.Values.AsMap }}
{{- $cidr := dig "serviceCIDR" (printf "ipv%s" $family) "" $.Values.AsMap }}
{{- if or $cidr (not $on) }}
- name: PLEXUS_SERVICE_CIDR{{ $suffix }}
  value: {{ $on | ternary $cidr "" | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "plexus.decided.dataplane" -}}
{{- range $family, $suffix := dict "4" "" "6" "6" }}
{{- $on := dig (printf "ipv%s" $family) "enabled" false $.Values.AsMap }}
{{- $native := dig (printf "ipv%sNativeRoutingCIDR" $family) "" $.Values.AsMap | default "" }}
{{- $pools := include "plexus.pools" (dict "root" $ "family" $family) | splitList "," }}
{{- if and $on (eq $.Values.ipam.mode "kubernetes") (eq $.Values.routingMode "native") (not $native) }}
{{- fail (printf "ipv%sNativeRoutingCIDR: say where pods are (the controller manager's --cluster-cidr), as routingMode is native and Nodes bring their blocks" $family) }}
{{- end }}
{{- if and $on (or $native (ne $.Values.ipam.mode "kubernetes")) }}
- name: PLEXUS_NATIVE_ROUTING_CIDR{{ $suffix }}
  value: {{ $native | default (first $pools) | quote }}
{{- end }}
{{- end }}
{{- $agent := .Values.ipMasqAgent }}
{{- if $agent.enabled }}
{{- $listed := $agent.config.nonMasqueradeCIDRs }}
{{- if not $listed }}{{ $listed = include "plexus.never-outside" . | fromJsonArray }}{{ end }}
{{- if not $agent.config.masqLinkLocal }}{{ $listed = append $listed "169.254.0.0/16" }}{{ end }}
{{- if not $agent.config.masqLinkLocalIPv6 }}{{ $listed = append $listed "fe80::/10" }}{{ end }}
{{- $kept := list }}
{{- range $listed | uniq }}
{{- if (contains ":" .) | ternary $.Values.ipv6.enabled $.Values.ipv4.enabled }}{{ $kept = append $kept . }}{{ end }}
{{- end }}
- name: PLEXUS_MASQ_EXCLUDE
  value: {{ join "," $kept | quote }}
{{- end }}
{{- end -}}

{{- define "plexus.root-without-capabilities" -}}
runAsUser: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}
