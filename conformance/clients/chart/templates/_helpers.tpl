{{- define "shop.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "shop.job" -}}
backoffLimit: 0
template:
  spec:
    restartPolicy: Never
    terminationGracePeriodSeconds: 1
    containers:
    - name: c
      image: skiff/busybox:1
      command: [sh, -c, {{ .command | quote }}]
{{- end }}
