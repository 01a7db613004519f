package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/randfill"
)

const perKind = 4

func filler(seed int64) *randfill.Filler {
	words := []string{"", "a", "web-7", "Größe ✓", "x\n\"y\"\\", "0"}
	return randfill.NewWithSeed(seed).NilChance(.6).NumElements(1, 2).MaxDepth(14).Funcs(
		func(s *string, c randfill.Continue) { *s = words[c.Intn(len(words))] },
		func(n *int32, c randfill.Continue) { *n = []int32{0, 1, -1, 300, 1<<31 - 1, -1 << 31}[c.Intn(6)] },
		func(n *int64, c randfill.Continue) { *n = []int64{0, 1, -1, 1 << 40, 1<<63 - 1, -1 << 63}[c.Intn(6)] },
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse([]string{"0", "100m", "1Gi", "2", "1e3", "-5k"}[c.Intn(6)])
		},
		func(v *intstr.IntOrString, c randfill.Continue) {
			*v = []intstr.IntOrString{intstr.FromInt32(0), intstr.FromInt32(80), intstr.FromString("25%"), intstr.FromString("")}[c.Intn(4)]
		},
		func(t *metav1.Time, c randfill.Continue) {
			if c.Bool() {
				t.Time = time.Unix(c.Int63n(4e9), 0).UTC()
			}
		},
		func(t *metav1.MicroTime, c randfill.Continue) {
			if c.Bool() {
				t.Time = time.Unix(c.Int63n(4e9), c.Int63n(1e6)*1000).UTC()
			}
		},
		func(b *[]byte, c randfill.Continue) { *b = [][]byte{{}, {0, 255}, []byte("text")}[c.Intn(3)] },
		func(v *authenticationv1.ExtraValue, c randfill.Continue) { *v = []string{"", "x"} },
		func(v *authorizationv1.ExtraValue, c randfill.Continue) { *v = []string{"", "x"} },
		func(v *certificatesv1.ExtraValue, c randfill.Continue) { *v = []string{"", "x"} },
		func(f *metav1.FieldsV1, c randfill.Continue) { f.Raw = []byte(`{"f:data":{".":{},"f:a":{}}}`) },
		func(t *metav1.TypeMeta, c randfill.Continue) {},
	)
}

// real are objects as people make them.
func real() []root {
	three, zero, yes := int32(3), int64(0), true
	port := intstr.FromString("http")
	quarter := intstr.FromString("25%")
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", "cloudhub.dev/runtime": "process"}},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{"zone": "a"},
			TerminationGracePeriodSeconds: &zero,
			SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &zero, SupplementalGroups: []int64{0, 7, 1<<31 - 1}},
			Containers: []corev1.Container{{
				Name: "main", Command: []string{"/bin/sh", "-c", ""}, Image: "x:1",
				Env: []corev1.EnvVar{
					{Name: "EMPTY"},
					{Name: "KEY", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "k"}}},
				},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{"cpu": resource.MustParse("0.5"), "memory": resource.MustParse("1024Ki")},
				},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: port}}},
			}},
			Volumes: []corev1.Volume{
				{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
				{Name: "e", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			},
			Tolerations: []corev1.Toleration{{Operator: "Exists", Effect: "NoExecute", TolerationSeconds: &zero}},
		},
	}
	return []root{
		{"v1", "ConfigMap", &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"},
			Data:       map[string]string{"a": "b", "empty": ""}, BinaryData: map[string][]byte{"bin": {0, 255, 128}, "none": {}}, Immutable: new(bool)}},
		{"v1", "Secret", &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Type: "Opaque", Data: map[string][]byte{"p": []byte("pass")}, StringData: map[string]string{"q": "r"}}},
		{"v1", "Namespace", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}},
		{"v1", "Pod", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-", Finalizers: []string{"x/y"}}, Spec: template.Spec}},
		{"apps/v1", "Deployment", &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"}},
			Spec: appsv1.DeploymentSpec{Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Template: template,
				Strategy: appsv1.DeploymentStrategy{Type: "RollingUpdate", RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &quarter, MaxUnavailable: &intstr.IntOrString{}}}}}},
		{"apps/v1", "DeleteOptions", &metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions("u"), DryRun: []string{"All"}}},
	}
}

// encode writes the line {"kind","protobuf","json"}. The envelope is the one that client-go sends.
func encode(out io.Writer, r root) {
	r.object.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(r.apiVersion, r.kind))
	wire, err := runtime.Encode(protobuf.NewSerializer(nil, nil), r.object)
	check(err)
	twin, err := json.Marshal(r.object)
	check(err)
	line, err := json.Marshal(map[string]any{"kind": r.kind, "protobuf": base64.StdEncoding.EncodeToString(wire), "json": json.RawMessage(twin)})
	check(err)
	fmt.Fprintf(out, "%s\n", line)
}

func writeCorpus(out io.Writer) {
	for _, r := range real() {
		encode(out, r)
	}
	for i, r := range roots {
		if r.apiVersion == "*" {
			r.apiVersion = "v1"
		}
		encode(out, root{r.apiVersion, r.kind, reflect.New(r.goType()).Interface().(runtime.Object)})
		for j := range perKind {
			object := reflect.New(r.goType()).Interface().(runtime.Object)
			filler(int64(1000*i + j)).Fill(object)
			encode(out, root{r.apiVersion, r.kind, object})
		}
	}
}
