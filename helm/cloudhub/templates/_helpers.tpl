{{/* Names. Kept under 40 characters, so that those of pods and Services fit into 63. */}}
{{- define "cloudhub.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels by which a component's pods are chosen. Call: (list $ "hub") */}}
{{- define "cloudhub.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 40 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "cloudhub.labels" -}}
{{- $root := index . 0 -}}
{{ include "cloudhub.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: cloudhub
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "cloudhub.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "cloudhub.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "cloudhub.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* How many replicas there may ever be: each has a config file and, in some modes, a Service. */}}
{{- define "cloudhub.replicasMax" -}}
{{- if .Values.autoscaling.enabled -}}{{ .Values.autoscaling.maxReplicas }}{{- else -}}{{ .Values.replicas }}{{- end -}}
{{- end -}}

{{- define "cloudhub.anyAddress" -}}
{{- if eq .Values.ipFamily "IPv6" -}}[::]{{- else -}}0.0.0.0{{- end -}}
{{- end -}}

{{- define "cloudhub.loopback" -}}
{{- if eq .Values.ipFamily "IPv6" -}}::1{{- else -}}127.0.0.1{{- end -}}
{{- end -}}

{{- define "cloudhub.ipFamilies" -}}
ipFamilyPolicy: SingleStack
ipFamilies: [{{ .Values.ipFamily }}]
{{- end -}}

{{/* Whose address a replica's load balancer has. Call: (list $ ordinal) */}}
{{- define "cloudhub.loadBalancerHost" -}}
{{- $root := index . 0 -}}{{- $ordinal := index . 1 -}}{{- $lb := $root.Values.edge.loadBalancer -}}
{{- if $lb.hosts -}}
{{ index $lb.hosts $ordinal }}
{{- else -}}
{{ $lb.host | replace "{pod}" (printf "%s-%d" (include "cloudhub.fullname" $root) $ordinal) | replace "{ordinal}" (toString $ordinal) }}
{{- end -}}
{{- end -}}

{{- define "cloudhub.hostPort" -}}
{{- $host := index . 0 -}}
{{- if contains ":" $host -}}[{{ $host }}]{{- else -}}{{ $host }}{{- end -}}:{{ index . 1 }}
{{- end -}}

{{/* What every pod of this chart has: the restricted Pod Security Standard, and no place on an edge node. */}}
{{- define "cloudhub.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  # The default would open the files that the hub keeps closed to its group, at each mount.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "cloudhub.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Call: (list $ "hub") */}}
{{- define "cloudhub.placement" -}}
{{- $root := index . 0 -}}
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - { key: cloudhub.dev/edge, operator: DoesNotExist }
topologySpreadConstraints:
  {{- range $key, $when := dict "kubernetes.io/hostname" $root.Values.topologySpread.hosts "topology.kubernetes.io/zone" $root.Values.topologySpread.zones }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $when }}
    labelSelector:
      matchLabels: {{- include "cloudhub.selector" $ | nindent 8 }}
    # A rolling update counts its own revision, or the last pods could not be placed.
    matchLabelKeys: [controller-revision-hash]
  {{- end }}
{{- end -}}

{{/* Names of Secrets */}}
{{- define "cloudhub.keySecret" -}}
{{ .Values.authority.keySecret | default (printf "%s-authority-key" (include "cloudhub.fullname" .)) }}
{{- end -}}
{{/* Call: (list $ "etcd") */}}
{{- define "cloudhub.bundledSecret" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}
{{ (index $root.Values $part).bundled.tlsSecret | default (printf "%s-%s-tls" (include "cloudhub.fullname" $root) $part) }}
{{- end -}}
{{/* The name by which the other pods of a bundled server's cluster and the hubs reach it. Call: (list $ "etcd" ordinal) */}}
{{- define "cloudhub.bundledHost" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-%s" (include "cloudhub.fullname" $root) (index . 1) -}}
{{ $name }}-{{ index . 2 }}.{{ $name }}.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}
{{- end -}}
{{/* The Secrets with what the hub shows to etcd and NATS; NATS may have none. */}}
{{- define "cloudhub.etcdSecret" -}}
{{- if eq .Values.etcd.mode "external" -}}{{ .Values.etcd.external.tlsSecret }}{{- else -}}{{ include "cloudhub.bundledSecret" (list . "etcd") }}{{- end -}}
{{- end -}}
{{- define "cloudhub.natsSecret" -}}
{{- if eq .Values.nats.mode "external" -}}{{ .Values.nats.external.tlsSecret }}
{{- else if eq .Values.nats.mode "bundled" -}}{{ include "cloudhub.bundledSecret" (list . "nats") }}{{- end -}}
{{- end -}}
{{/* Of a bundled server's Secret the hub is not given the server's key. Call with the mode. */}}
{{- define "cloudhub.clientItems" -}}
{{- if eq . "bundled" -}}
, items: [{ key: ca.crt, path: ca.crt }, { key: client.crt, path: client.crt }, { key: client.key, path: client.key }]
{{- end -}}
{{- end -}}
