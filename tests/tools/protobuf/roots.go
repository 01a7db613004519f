// Command protobuf writes two files for the hub's protobuf decoder, from the Go types that Kubernetes publishes:
//
//	go run . fields > ../../../hub/api/protobuf_fields.json
//	go run . corpus > ../../hub/api/protobuf_corpus.jsonl
//
// `fields` is the table of field numbers, JSON names and types; `corpus` holds objects as a Go client sends them in
// protobuf, each with what the same client sends as JSON. Both are the same on every run.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// root is a kind that a request's body may hold. DeleteOptions come under every group's version.
type root struct {
	apiVersion, kind string
	object           runtime.Object
}

var roots = []root{
	{"*", "DeleteOptions", &metav1.DeleteOptions{}},
	{"admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", &admissionv1.ValidatingAdmissionPolicy{}},
	{"admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", &admissionv1.ValidatingAdmissionPolicyBinding{}},
	{"apps/v1", "DaemonSet", &appsv1.DaemonSet{}},
	{"apps/v1", "Deployment", &appsv1.Deployment{}},
	{"apps/v1", "ReplicaSet", &appsv1.ReplicaSet{}},
	{"authentication.k8s.io/v1", "SelfSubjectReview", &authenticationv1.SelfSubjectReview{}},
	{"authentication.k8s.io/v1", "TokenRequest", &authenticationv1.TokenRequest{}},
	{"authentication.k8s.io/v1", "TokenReview", &authenticationv1.TokenReview{}},
	{"authorization.k8s.io/v1", "LocalSubjectAccessReview", &authorizationv1.LocalSubjectAccessReview{}},
	{"authorization.k8s.io/v1", "SelfSubjectAccessReview", &authorizationv1.SelfSubjectAccessReview{}},
	{"authorization.k8s.io/v1", "SelfSubjectRulesReview", &authorizationv1.SelfSubjectRulesReview{}},
	{"authorization.k8s.io/v1", "SubjectAccessReview", &authorizationv1.SubjectAccessReview{}},
	{"autoscaling/v1", "Scale", &autoscalingv1.Scale{}},
	{"certificates.k8s.io/v1", "CertificateSigningRequest", &certificatesv1.CertificateSigningRequest{}},
	{"coordination.k8s.io/v1", "Lease", &coordinationv1.Lease{}},
	{"events.k8s.io/v1", "Event", &eventsv1.Event{}},
	{"policy/v1", "Eviction", &policyv1.Eviction{}},
	{"rbac.authorization.k8s.io/v1", "ClusterRole", &rbacv1.ClusterRole{}},
	{"rbac.authorization.k8s.io/v1", "ClusterRoleBinding", &rbacv1.ClusterRoleBinding{}},
	{"rbac.authorization.k8s.io/v1", "Role", &rbacv1.Role{}},
	{"rbac.authorization.k8s.io/v1", "RoleBinding", &rbacv1.RoleBinding{}},
	{"v1", "Binding", &corev1.Binding{}},
	{"v1", "ConfigMap", &corev1.ConfigMap{}},
	{"v1", "Event", &corev1.Event{}},
	{"v1", "Namespace", &corev1.Namespace{}},
	{"v1", "Node", &corev1.Node{}},
	{"v1", "Pod", &corev1.Pod{}},
	{"v1", "Secret", &corev1.Secret{}},
	{"v1", "ServiceAccount", &corev1.ServiceAccount{}},
}

func (r root) goType() reflect.Type { return reflect.TypeOf(r.object).Elem() }

func main() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	if len(os.Args) == 2 && os.Args[1] == "fields" {
		writeFields(out)
	} else if len(os.Args) == 2 && os.Args[1] == "corpus" {
		writeCorpus(out)
	} else {
		fmt.Fprintln(os.Stderr, "usage: go run . fields|corpus")
		os.Exit(2)
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
