{{/* What the schema cannot say: relations between values. Each message says what, why and what to do. */}}
{{- define "cloudhub.validate" -}}
{{- $max := int (include "cloudhub.replicasMax" .) -}}
{{- if and (eq .Values.etcd.mode "none") (or (gt $max 1) .Values.autoscaling.enabled) -}}
{{- fail "replicas: more than one replica need etcd, and etcd.mode is none; set etcd.mode to bundled or external, or replicas to 1 with autoscaling.enabled=false" -}}
{{- end -}}
{{- if and (eq .Values.etcd.mode "none") (ne .Values.nats.mode "none") -}}
{{- fail "nats.mode: a hub without etcd is alone and relays nothing; set nats.mode to none" -}}
{{- end -}}
{{- if eq .Values.etcd.mode "external" -}}
{{- if not .Values.etcd.external.endpoints -}}
{{- fail "etcd.external.endpoints: name at least one member, such as etcd.example.com:2379, or set etcd.mode to bundled" -}}
{{- end -}}
{{- if not .Values.etcd.external.tlsSecret -}}
{{- fail "etcd.external.tlsSecret: the fleet's Secrets lie in etcd, so it is reached over TLS only; name a Secret with ca.crt (and tls.crt, tls.key)" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.nats.mode "external") (not .Values.nats.external.urls) -}}
{{- fail "nats.external.urls: name at least one server, such as tls://nats.example.com:4222, or set nats.mode to bundled or none" -}}
{{- end -}}
{{- if and (eq .Values.edge.mode "relay") (gt $max 1) (eq .Values.nats.mode "none") -}}
{{- fail "edge.mode: relay needs NATS, and nats.mode is none; set nats.mode to bundled or external, or give the replicas addresses with edge.mode loadBalancer, nodePort or hostPort" -}}
{{- end -}}
{{- if eq .Values.edge.mode "loadBalancer" -}}
{{- with .Values.edge.loadBalancer -}}
{{- if .hosts -}}
{{- if lt (len .hosts) $max -}}
{{- fail (printf "edge.loadBalancer.hosts: there may be %d replicas, and only %d have a name; add the others, or use edge.loadBalancer.host" $max (len .hosts)) -}}
{{- end -}}
{{- else if not .host -}}
{{- fail "edge.loadBalancer.host: how edges reach a replica's load balancer has to be known, such as \"{pod}.edge.example.com\"; set it or edge.loadBalancer.hosts" -}}
{{- else if and (gt $max 1) (not (contains "{pod}" .host)) (not (contains "{ordinal}" .host)) -}}
{{- fail (printf "edge.loadBalancer.host: %q is the same for all replicas; put {pod} or {ordinal} in it" .host) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.edge.mode "nodePort" -}}
{{- if not .Values.edge.nodePort.host -}}
{{- fail "edge.nodePort.host: a name or address that leads to the cluster's machines is needed" -}}
{{- end -}}
{{- if gt (add .Values.edge.nodePort.first $max) 32768 -}}
{{- fail (printf "edge.nodePort.first: %d replicas from port %d on go beyond 32767; begin lower" $max (int .Values.edge.nodePort.first)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.certificates.provider "spire") (not .Values.certificates.spire.server) -}}
{{- fail "certificates.spire.server: host:port of the SPIRE server's API, below whose authority the hub signs nodes" -}}
{{- end -}}
{{- if and .Values.kms.socket (eq (empty .Values.kms.hostPath) (empty .Values.kms.plugin)) -}}
{{- fail "kms: the plugin's socket comes from kms.hostPath, a directory of the machine, or from kms.plugin, a container of the hub's pods; set one of them" -}}
{{- end -}}
{{- if and (not .Values.kms.socket) (or .Values.kms.hostPath .Values.kms.plugin) -}}
{{- fail "kms.socket: the name of the plugin's socket is needed" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and (or .Values.autoscaling.enabled .Values.metrics.serviceMonitor.enabled) (not .Values.metrics.enabled) -}}
{{- fail "metrics.enabled: autoscaling and the ServiceMonitor read the metrics port; switch it on" -}}
{{- end -}}
{{- $ports := list 8443 8444 (int .Values.metrics.port) -}}
{{- if eq .Values.source "kubernetes" -}}{{- $ports = concat $ports (list (int .Values.kubernetes.kubelet.port) (int .Values.kubernetes.webhook.port)) -}}{{- end -}}
{{- if ne (len $ports) (len (uniq $ports)) -}}
{{- fail "metrics.port, kubernetes.kubelet.port and kubernetes.webhook.port: they have to differ from each other and from 8443 and 8444, where the hub listens" -}}
{{- end -}}
{{- end -}}
