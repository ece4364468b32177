package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// certificate makes a certificate for loopback that signs itself; answers it and its PEM.
func certificate() (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	now := time.Now()
	wanted := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "widget-operator"},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, wanted, wanted, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// freePort answers a port that nobody uses now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// registrations are the two configurations that lead to the door, for objects of one namespace.
func registrations(ns string, port int, ca []byte) []client.Object {
	never, equivalent := admissionv1.SideEffectClassNone, admissionv1.Equivalent
	refuse := admissionv1.Fail
	to := func(what string) admissionv1.WebhookClientConfig {
		url := fmt.Sprintf("https://127.0.0.1:%d/%s-operator-example-com-v1-widget", port, what)
		return admissionv1.WebhookClientConfig{URL: &url, CABundle: ca}
	}
	on := func(o ...admissionv1.OperationType) []admissionv1.RuleWithOperations {
		return []admissionv1.RuleWithOperations{{Operations: o, Rule: admissionv1.Rule{
			APIGroups: []string{groupVersion.Group}, APIVersions: []string{"v1"}, Resources: []string{"widgets"}}}}
	}
	here := &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}
	return []client.Object{
		&admissionv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: ns},
			Webhooks: []admissionv1.MutatingWebhook{{
				Name: "mutate.operator.example.com", ClientConfig: to("mutate"), SideEffects: &never, FailurePolicy: &refuse,
				MatchPolicy: &equivalent, NamespaceSelector: here, AdmissionReviewVersions: []string{"v1"},
				Rules: on(admissionv1.Create, admissionv1.Update),
			}},
		},
		&admissionv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: ns},
			Webhooks: []admissionv1.ValidatingWebhook{{
				Name: "validate.operator.example.com", ClientConfig: to("validate"), SideEffects: &never, FailurePolicy: &refuse,
				MatchPolicy: &equivalent, NamespaceSelector: here, AdmissionReviewVersions: []string{"v1"},
				Rules: on(admissionv1.Create, admissionv1.Update, admissionv1.Delete),
			}},
		},
	}
}
