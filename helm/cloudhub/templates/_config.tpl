{{/*
One replica's config file, whose keys are those of hub/config.py. Call: (list $ ordinal)
What differs from pod to pod and is known in the pod alone comes as options.
*/}}
{{- define "cloudhub.config" -}}
{{- $root := index . 0 -}}{{- $ordinal := index . 1 -}}{{- $values := $root.Values -}}
{{- $any := include "cloudhub.anyAddress" $root -}}
{{- $full := include "cloudhub.fullname" $root -}}
data_dir: /data/cloudhub
api_address: "{{ $any }}:8443"
edge_address: "{{ $any }}:8444"
{{- if $values.metrics.enabled }}
metrics_address: "{{ $any }}:{{ $values.metrics.port }}"
{{- end }}
{{- with $values.telemetry.otlpEndpoint }}
otlp_endpoint: {{ . | quote }}
trace_ratio: {{ $values.telemetry.traceRatio }}
{{- end }}
{{- with $values.edge.advertise }}
advertise_edge: {{ . | quote }}
{{- end }}
{{- if eq $values.edge.mode "relay" }}
replica_edge: none
{{- else if eq $values.edge.mode "loadBalancer" }}
replica_edge: {{ include "cloudhub.hostPort" (list (include "cloudhub.loadBalancerHost" (list $root $ordinal)) $values.edge.port) | quote }}
{{- else if eq $values.edge.mode "nodePort" }}
replica_edge: {{ include "cloudhub.hostPort" (list $values.edge.nodePort.host (add $values.edge.nodePort.first $ordinal)) | quote }}
{{- end }}
tls_san:
  - {{ $full }}
  - {{ $full }}.{{ $root.Release.Namespace }}
  - {{ $full }}.{{ $root.Release.Namespace }}.svc
  - {{ $full }}.{{ $root.Release.Namespace }}.svc.{{ $values.clusterDomain }}
  - "*.{{ $full }}-replicas.{{ $root.Release.Namespace }}.svc.{{ $values.clusterDomain }}"
  {{- range $values.hub.tlsSan }}
  - {{ . | quote }}
  {{- end }}
trust_domain: {{ $values.hub.trustDomain }}
slots: {{ $values.hub.slots }}
heartbeat: {{ $values.hub.heartbeat }}
clone_backoff: {{ $values.hub.cloneBackoff }}
node_certificate: {{ $values.hub.nodeCertificate }}
node_return: {{ $values.hub.nodeReturn }}
renewals_per_s: {{ $values.hub.renewalsPerSecond }}
node_rate: {{ $values.hub.nodeRate }}
pool_rate: {{ $values.hub.poolRate }}
replica_rate: {{ $values.hub.replicaRate }}
handshake_rate: {{ $values.hub.handshakeRate }}
{{- if $values.hub.audit.policyConfigMap }}
audit_policy: /etc/cloudhub-audit/policy.yaml
audit_log: /data/cloudhub/audit.log
audit_log_mb: {{ $values.hub.audit.fileMb }}
audit_log_files: {{ $values.hub.audit.files }}
{{- end }}
join_approval: {{ $values.hub.joinApproval }}
ca_key_algorithm: {{ $values.hub.caKeyAlgorithm }}
hub_key_algorithm: {{ $values.hub.hubKeyAlgorithm }}
{{- if eq $values.certificates.provider "spire" }}
spire_server: {{ $values.certificates.spire.server | quote }}
spiffe_socket: unix://{{ $values.certificates.spire.mountPath }}/{{ $values.certificates.spire.socket }}
{{- end }}
{{- with $values.certificates.federation.nodes }}
federated_node: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.certificates.federation.bundles }}
federated_bundle:
  {{- range . }}
  - {{ splitList "=" . | first }}=/etc/cloudhub-federation/{{ splitList "=" . | last }}
  {{- end }}
{{- end }}
history: {{ $values.hub.history }}
lease_ttl: {{ $values.hub.leaseTtl }}
log_level: {{ $values.hub.logLevel }}
log_format: {{ $values.hub.logFormat }}
{{- if ne $values.etcd.mode "none" }}
key_file: /etc/cloudhub-key/{{ $values.authority.keySecretKey }}
{{- end }}
{{- with $values.kms.socket }}
kms_socket: /run/cloudhub-kms/{{ . }}
{{- end }}
{{- if eq $values.etcd.mode "external" }}
etcd: {{- toYaml $values.etcd.external.endpoints | nindent 2 }}
etcd_ca: /etc/cloudhub-etcd/ca.crt
{{- if $values.etcd.external.clientCertificate }}
etcd_cert: /etc/cloudhub-etcd/tls.crt
etcd_key: /etc/cloudhub-etcd/tls.key
{{- end }}
{{- else if eq $values.etcd.mode "bundled" }}
etcd:
  {{- range until (int $values.etcd.bundled.members) }}
  - {{ include "cloudhub.bundledHost" (list $root "etcd" .) }}:2379
  {{- end }}
etcd_ca: /etc/cloudhub-etcd/ca.crt
etcd_cert: /etc/cloudhub-etcd/client.crt
etcd_key: /etc/cloudhub-etcd/client.key
{{- end }}
{{- if eq $values.nats.mode "external" }}
nats: {{- toYaml $values.nats.external.urls | nindent 2 }}
{{- if $values.nats.external.tlsSecret }}
nats_ca: /etc/cloudhub-nats/ca.crt
{{- if $values.nats.external.clientCertificate }}
nats_cert: /etc/cloudhub-nats/tls.crt
nats_key: /etc/cloudhub-nats/tls.key
{{- end }}
{{- end }}
{{- else if eq $values.nats.mode "bundled" }}
nats:
  {{- range until (int $values.nats.bundled.servers) }}
  - tls://{{ include "cloudhub.bundledHost" (list $root "nats" .) }}:4222
  {{- end }}
nats_ca: /etc/cloudhub-nats/ca.crt
nats_cert: /etc/cloudhub-nats/client.crt
nats_key: /etc/cloudhub-nats/client.key
{{- end }}
{{- if eq $values.source "kubernetes" }}
source: kubernetes
kubelet_address: "{{ $any }}:{{ $values.kubernetes.kubelet.port }}"
node_lease: {{ $values.kubernetes.nodeLease }}
{{- with $values.kubernetes.kubelet.advertise }}
kubelet_advertise: {{ . | quote }}
{{- end }}
{{- if eq $values.kubernetes.tolerations "webhook" }}
webhook_address: "{{ $any }}:{{ $values.kubernetes.webhook.port }}"
{{- end }}
{{- if $values.kubernetes.kubelet.clientCaConfigMap }}
kubelet_client_ca: /etc/cloudhub-kubelet/{{ $values.kubernetes.kubelet.clientCaKey }}
{{- end }}
{{- with $values.kubernetes.nodeTaints }}
node_taints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if eq $values.kubernetes.tolerations "webhook" }}
webhook_address: "{{ $any }}:9443"
{{- end }}
{{- end }}
{{- end -}}
