{{- define "zos-cri.labels" -}}
app.kubernetes.io/name: zos-cri
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "zos-cri.selector" -}}
app.kubernetes.io/name: zos-cri
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "zos-cri.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* The pods that work on a node: (dict "root" $ "action" "install"|"remove"). */}}
{{- define "zos-cri.daemonset" -}}
{{- $ := .root -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ $.Release.Name }}-{{ .action }}
  namespace: {{ $.Release.Namespace }}
  labels:
    {{- include "zos-cri.labels" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .action }}
spec:
  selector:
    matchLabels:
      {{- include "zos-cri.selector" $ | nindent 6 }}
      app.kubernetes.io/component: {{ .action }}
  {{- with $.Values.updateStrategy }}
  updateStrategy:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "zos-cri.labels" $ | nindent 8 }}
        app.kubernetes.io/component: {{ .action }}
      annotations:
        # A changed script or configuration is a new pod, which applies it.
        checksum/node: {{ include (print $.Template.BasePath "/configmap.yaml") $ | sha256sum }}
    spec:
      nodeSelector:
        kubernetes.io/os: linux
        {{ $.Values.nodeLabel }}: {{ .action }}
      hostPID: true
      hostNetwork: true
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 5
      {{- with $.Values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $.Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $.Values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: node
          image: {{ include "zos-cri.image" $ | quote }}
          imagePullPolicy: {{ $.Values.image.pullPolicy }}
          command: [sh, /scripts/node.sh, {{ .action }}]
          env:
            - name: HOST
              value: /host
            - name: KUBELET_CONFIG_DIR
              value: {{ $.Values.kubelet.configDir | quote }}
          {{- if eq .action "install" }}
          ports:
            - name: metrics
              containerPort: {{ $.Values.metrics.port }}
          {{- end }}
          # Ready is a node on which the job is done.
          readinessProbe:
            exec:
              command: [sh, /scripts/node.sh, is-{{ trimSuffix "e" .action }}ed]
            periodSeconds: 15
            timeoutSeconds: 10
          {{- with $.Values.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          # It installs a package on the host, and speaks with the host's systemd.
          securityContext:
            privileged: true
          volumeMounts:
            - name: host
              mountPath: /host
              mountPropagation: HostToContainer
            - name: scripts
              mountPath: /scripts
              readOnly: true
      volumes:
        - name: host
          hostPath:
            path: /
        - name: scripts
          configMap:
            name: {{ $.Release.Name }}-node
{{- end }}
