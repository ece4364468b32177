package main

import (
	"encoding/json"
	"log"
	"os"
	"reflect"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatoropenapi "k8s.io/kube-aggregator/pkg/generated/openapi"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/yaml"
)

// release is the version of the modules in go.mod.
const release = "v0.37.2"

type schemaProps = apiextensionsv1.JSONSchemaProps

// special lists the types that write their own JSON.
var special = map[string]string{
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":                     "Time",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":                "MicroTime",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Duration":                 "Duration",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":                 "FieldsV1",
	"k8s.io/apimachinery/pkg/api/resource.Quantity":                 "Quantity",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString":               "IntOrString",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":                  "RawExtension",
	"k8s.io/apimachinery/pkg/runtime.Object":                        "RawExtension",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSON": "Json",
}

type kind struct {
	group, version, kind, model string
	goType                      reflect.Type
}

// served are the group-versions a default server offers, and those whose objects travel in webhooks and discovery.
var served = []schema.GroupVersion{
	{Version: "v1"}, {Group: "admissionregistration.k8s.io", Version: "v1"}, {Group: "apps", Version: "v1"},
	{Group: "authentication.k8s.io", Version: "v1"}, {Group: "authorization.k8s.io", Version: "v1"},
	{Group: "autoscaling", Version: "v1"}, {Group: "autoscaling", Version: "v2"}, {Group: "batch", Version: "v1"},
	{Group: "certificates.k8s.io", Version: "v1"}, {Group: "coordination.k8s.io", Version: "v1"},
	{Group: "discovery.k8s.io", Version: "v1"}, {Group: "events.k8s.io", Version: "v1"},
	{Group: "flowcontrol.apiserver.k8s.io", Version: "v1"}, {Group: "networking.k8s.io", Version: "v1"},
	{Group: "node.k8s.io", Version: "v1"}, {Group: "policy", Version: "v1"},
	{Group: "rbac.authorization.k8s.io", Version: "v1"}, {Group: "resource.k8s.io", Version: "v1"},
	{Group: "scheduling.k8s.io", Version: "v1"}, {Group: "storage.k8s.io", Version: "v1"},
	{Group: "storagemigration.k8s.io", Version: "v1"}, {Group: "apiextensions.k8s.io", Version: "v1"},
	{Group: "apiregistration.k8s.io", Version: "v1"}, {Group: "admission.k8s.io", Version: "v1"},
	{Group: "apidiscovery.k8s.io", Version: "v2"}, {Group: "meta.k8s.io", Version: "v1"},
}

// roots are the kinds the table must describe.
func roots() []kind {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		scheme.AddToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme, admissionv1.AddToScheme,
		apidiscoveryv2.AddToScheme, metav1.AddMetaToScheme,
	} {
		check(add(s))
	}
	var out []kind
	have := map[schema.GroupVersionKind]bool{}
	for _, gv := range served {
		for name, t := range s.KnownTypes(gv) {
			inMeta := strings.HasSuffix(t.PkgPath(), "/meta/v1")
			if strings.HasPrefix(t.PkgPath(), "k8s.io/apimachinery/") && !inMeta {
				continue // internal forms
			}
			if inMeta && !(gv.Group == "" || gv.Group == "meta.k8s.io") {
				continue // every group registers them; once is enough
			}
			if inMeta && name == "WatchEvent" && gv.Group != "" {
				continue
			}
			gvk := gv.WithKind(name)
			if !have[gvk] {
				have[gvk] = true
				out = append(out, kind{group: gv.Group, version: gv.Version, kind: name, goType: t})
			}
		}
	}
	return out
}

// readDefaults collects `default` of every published field.
func readDefaults(path string) map[string]map[string]string {
	raw, err := os.ReadFile(path)
	check(err)
	_, text, ok := strings.Cut(string(raw), "YAMLObject(`")
	if !ok {
		log.Fatalf("%s: no schema", path)
	}
	text, _, _ = strings.Cut(text, "`)")
	var document struct {
		Types []struct {
			Name string `json:"name"`
			Map  struct {
				Fields []struct {
					Name    string          `json:"name"`
					Default json.RawMessage `json:"default"`
				} `json:"fields"`
			} `json:"map"`
		} `json:"types"`
	}
	check(yaml.Unmarshal([]byte(text), &document))
	out := map[string]map[string]string{}
	set := func(model, field, value string) {
		if value == "" || value == "null" {
			return
		}
		if out[model] == nil {
			out[model] = map[string]string{}
		}
		out[model][field] = value
	}
	for _, t := range document.Types {
		for _, f := range t.Map.Fields {
			set(t.Name, f.Name, string(f.Default))
		}
	}
	ref := func(name string) spec.Ref { return spec.MustCreateRef(name) }
	for _, get := range []func(common.ReferenceCallback) map[string]common.OpenAPIDefinition{
		apiextensionsopenapi.GetOpenAPIDefinitions, aggregatoropenapi.GetOpenAPIDefinitions,
	} {
		for name, d := range get(ref) {
			for field, p := range d.Schema.Properties {
				if p.Default != nil {
					value, err := json.Marshal(p.Default)
					check(err)
					set(name, field, string(value))
				}
			}
		}
	}
	return out
}

// implementsJSON tells types that write their own JSON from plain structures.
func implementsJSON(t reflect.Type) bool {
	_, a := reflect.New(t).Interface().(json.Marshaler)
	_, b := reflect.New(t).Interface().(json.Unmarshaler)
	return a || b
}
