// A controller-runtime operator against a server, and the users of its kind: custom kind from YAML, admission webhooks with a
// certificate of their own, leader election between two operators, caches with an index, metadata-only watches, owned
// objects, server-side apply, status and scale subresources, finalizers, events, garbage collection.
//
// Needs an API server and its controllers. It works in a namespace of its own, removes all it made, and ends with 0 when
// everything held. Pods need not run: a Deployment counts its pods before that.
package main

import (
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/yaml"
)

const patience = 60 * time.Second

//go:embed crd.yaml
var definition []byte

// play is what the steps share.
type play struct {
	config *rest.Config
	scheme *runtime.Scheme
	client.Client
	ns       string
	warnings *warnings
	first    *operator
	second   *operator
}

// operator is a manager that runs until it is stopped.
type operator struct {
	ctrl.Manager
	stop  context.CancelFunc
	ended chan error
}

func main() {
	ctrl.SetLogger(logr.Discard())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	p, err := begin(ctx)
	if err == nil {
		err = p.run(ctx)
		err = errors.Join(err, p.end())
	}
	if err != nil {
		fmt.Printf("FAIL %v\n", err)
		os.Exit(1)
	}
}

func begin(ctx context.Context) (*play, error) {
	c, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	c.QPS, c.Burst = 1000, 1000
	p := &play{scheme: runtime.NewScheme(), warnings: &warnings{}, config: c}
	c.WarningHandler = p.warnings
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiextensionsv1.AddToScheme, addWidgets} {
		if err := add(p.scheme); err != nil {
			return nil, err
		}
	}
	if p.Client, err = client.New(c, client.Options{Scheme: p.scheme}); err != nil {
		return nil, err
	}
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "operator-"}}
	if err := p.Create(ctx, space); err != nil {
		return nil, err
	}
	p.ns = space.Name
	return p, nil
}

func (p *play) run(ctx context.Context) error {
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"the definition is applied", p.define},
		{"the webhooks are heard", p.open},
		{"two operators, one leads", p.lead},
		{"created, defaulted, reconciled", p.create},
		{"refused by schema, rule and webhook", p.refuse},
		{"changed, scaled, repaired", p.change},
		{"status is a room of its own", p.status},
		{"the index of the cache, the selectable field", p.find},
		{"leadership passes on", p.handOver},
		{"deleted through the finalizer, owned objects go", p.remove},
	} {
		begun := time.Now()
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Printf("ok   %s (%.1f s)\n", step.name, time.Since(begun).Seconds())
	}
	return nil
}

// end removes everything, also after a failure.
func (p *play) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, o := range []*operator{p.first, p.second} {
		if o != nil {
			o.stop()
		}
	}
	var all error
	for _, o := range append(registrations(p.ns, 1, nil),
		&apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.operator.example.com"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: p.ns}}) {
		all = errors.Join(all, client.IgnoreNotFound(p.Delete(ctx, o)))
	}
	return all
}

func until(ctx context.Context, what string, check func(context.Context) (bool, error)) error {
	if err := wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, patience, true, check); err != nil {
		return fmt.Errorf("waiting until %s: %w", what, err)
	}
	return nil
}

func (p *play) define(ctx context.Context) error {
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(definition, &u.Object); err != nil {
		return err
	}
	if err := p.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("installer")); err != nil {
		return err
	}
	return until(ctx, "it is established", func(ctx context.Context) (bool, error) {
		d := &apiextensionsv1.CustomResourceDefinition{}
		if err := p.Get(ctx, client.ObjectKeyFromObject(u), d); err != nil {
			return false, err
		}
		for _, c := range d.Status.Conditions {
			if c.Type == apiextensionsv1.Established {
				return c.Status == apiextensionsv1.ConditionTrue, nil
			}
		}
		return false, nil
	})
}

// start runs a manager in the background.
func (p *play) start(ctx context.Context, o ctrl.Options, setUp func(ctrl.Manager) error) (*operator, error) {
	o.Scheme = p.scheme
	o.Metrics = metricsserver.Options{BindAddress: "0"}
	o.HealthProbeBindAddress = "0"
	o.LeaderElectionNamespace = p.ns
	// Both operators are in this process.
	yes := true
	o.Controller = config.Controller{SkipNameValidation: &yes}
	m, err := ctrl.NewManager(p.config, o)
	if err != nil {
		return nil, err
	}
	if err := setUp(m); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	run := &operator{Manager: m, stop: stop, ended: make(chan error, 1)}
	go func() { run.ended <- m.Start(ctx) }()
	return run, nil
}

func (p *play) open(ctx context.Context) error {
	served, ca, err := certificate()
	if err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	server := webhook.NewServer(webhook.Options{Host: "127.0.0.1", Port: port, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &served, nil }
	}}})
	if _, err := p.start(ctx, ctrl.Options{WebhookServer: server}, func(m ctrl.Manager) error {
		return ctrl.NewWebhookManagedBy(m, &Widget{}).WithDefaulter(door{}).WithValidator(door{}).Complete()
	}); err != nil {
		return err
	}
	for _, o := range registrations(p.ns, port, ca) {
		if err := p.Create(ctx, o); err != nil {
			return err
		}
	}
	return until(ctx, "a goodbye is refused", func(ctx context.Context) (bool, error) {
		err := p.Create(ctx, p.widget("probe", "red", "goodbye"), client.DryRunAll)
		return apierrors.IsForbidden(err), nil
	})
}

func (p *play) widget(name, color, greeting string) *Widget {
	return &Widget{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: p.ns}, Spec: WidgetSpec{Color: color, Greeting: greeting}}
}

func (p *play) lead(ctx context.Context) error {
	lease, renew, retry := 4*time.Second, 3*time.Second, 500*time.Millisecond
	operator := func(name string) (*operator, error) {
		o := ctrl.Options{LeaderElection: true, LeaderElectionID: "widgets", LeaderElectionReleaseOnCancel: true,
			LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry}
		return p.start(ctx, o, func(m ctrl.Manager) error {
			r := &reconciler{Client: m.GetClient(), recorder: m.GetEventRecorder("widgets"), name: name}
			return r.setUp(m)
		})
	}
	var err error
	if p.first, err = operator("first"); err != nil {
		return err
	}
	select {
	case <-p.first.Elected():
	case err := <-p.first.ended:
		return fmt.Errorf("the first ended: %w", err)
	case <-time.After(patience):
		return errors.New("the first never leads")
	}
	if p.second, err = operator("second"); err != nil {
		return err
	}
	if !p.second.GetCache().WaitForCacheSync(ctx) {
		return errors.New("the second's cache does not fill")
	}
	select {
	case <-p.second.Elected():
		return errors.New("both lead")
	default:
		return nil
	}
}

// settled waits until the operator has seen the present generation and its Deployment has the wanted size.
func (p *play) settled(ctx context.Context, name string) (*Widget, error) {
	w := &Widget{}
	err := until(ctx, name+" is settled", func(ctx context.Context) (bool, error) {
		if err := p.Get(ctx, client.ObjectKey{Namespace: p.ns, Name: name}, w); err != nil {
			return false, err
		}
		c := meta.FindStatusCondition(w.Status.Conditions, "Ready")
		return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == w.Generation, nil
	})
	return w, err
}

func (p *play) create(ctx context.Context) error {
	if err := p.Create(ctx, p.widget("one", "red", "")); err != nil {
		return err
	}
	if err := p.Create(ctx, p.widget("two", "grey", "hi")); err != nil {
		return err
	}
	if !p.warnings.heard("grey is dull") {
		return fmt.Errorf("no warning came: %v", p.warnings.said)
	}
	w, err := p.settled(ctx, "one")
	if err != nil {
		return err
	}
	if w.Spec.Greeting != "hello from red" || w.Spec.Size == nil || *w.Spec.Size != 1 || w.Generation != 1 {
		return fmt.Errorf("not defaulted: %+v", w)
	}
	key := client.ObjectKeyFromObject(w)
	m, d := &corev1.ConfigMap{}, &appsv1.Deployment{}
	if err := errors.Join(p.Get(ctx, key, m), p.Get(ctx, key, d)); err != nil {
		return err
	}
	if !metav1.IsControlledBy(m, w) || !metav1.IsControlledBy(d, w) || m.Data["greeting"] != "hello from red" {
		return fmt.Errorf("not owned, or not its words: %+v %+v", m, d)
	}
	if err := sideBySide(ctx, p, d); err != nil {
		return err
	}
	return until(ctx, "its event is there, in both groups", func(ctx context.Context) (bool, error) {
		now, old := &eventsv1.EventList{}, &corev1.EventList{}
		if err := p.List(ctx, now, client.InNamespace(p.ns), client.MatchingFields{"reason": "Adopted"}); err != nil {
			return false, err
		}
		about := client.MatchingFields{"reason": "Adopted", "involvedObject.kind": "Widget", "involvedObject.name": "one"}
		if err := p.List(ctx, old, client.InNamespace(p.ns), about); err != nil {
			return false, err
		}
		return len(now.Items) == 2 && len(old.Items) == 1 && old.Items[0].Message == "adopted by first" &&
			now.Items[0].Action == "Reconcile", nil
	})
}

func (p *play) refuse(ctx context.Context) error {
	key := client.ObjectKey{Namespace: p.ns, Name: "one"}
	for _, c := range []struct {
		what, said string
		invalid    bool
		change     func(*Widget)
	}{
		{"the webhook", `admission webhook "validate.operator.example.com" denied the request: "goodbye all" is no greeting`, false,
			func(w *Widget) { w.Spec.Greeting = "goodbye all" }},
		{"the schema", "spec.size: Invalid value: 10: spec.size in body should be less than or equal to 9", true,
			func(w *Widget) { size := int32(10); w.Spec.Size = &size }},
		{"the rule", "color is for ever", true, func(w *Widget) { w.Spec.Color = "blue" }},
	} {
		w := &Widget{}
		// The operator writes too.
		err := until(ctx, c.what+" answers", func(ctx context.Context) (bool, error) {
			if err := p.Get(ctx, key, w); err != nil {
				return false, err
			}
			c.change(w)
			err := p.Update(ctx, w)
			if apierrors.IsConflict(err) {
				return false, nil
			}
			if !strings.Contains(fmt.Sprint(err), c.said) || apierrors.IsInvalid(err) != c.invalid || apierrors.IsForbidden(err) == c.invalid {
				return false, fmt.Errorf("it said %w", err)
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *play) change(ctx context.Context) error {
	w, err := p.settled(ctx, "one")
	if err != nil {
		return err
	}
	key := client.ObjectKeyFromObject(w)
	if err := p.Patch(ctx, w, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"size":2}}`))); err != nil {
		return err
	}
	if w.Generation != 2 {
		return fmt.Errorf("generation %d", w.Generation)
	}
	if w, err = p.settled(ctx, "one"); err != nil {
		return err
	}
	scale := &autoscalingv1.Scale{}
	if err := p.SubResource("scale").Get(ctx, w, scale); err != nil {
		return err
	}
	if scale.Spec.Replicas != 2 || scale.Status.Replicas != 2 || scale.Status.Selector != "widget=one" {
		return fmt.Errorf("scale %+v", scale)
	}
	scale.Spec.Replicas = 3
	if err := p.SubResource("scale").Update(ctx, w, client.WithSubResourceBody(scale)); err != nil {
		return err
	}
	if w, err = p.settled(ctx, "one"); err != nil {
		return err
	}
	if w.Status.Replicas != 3 || *w.Spec.Size != 3 {
		return fmt.Errorf("not scaled: %+v", w)
	}
	d := &appsv1.Deployment{}
	if err := p.Get(ctx, key, d); err != nil {
		return err
	}
	if d.Annotations["second"] != "writer" {
		return errors.New("the second writer's field was lost")
	}
	// What a hand does to owned objects is undone.
	if err := p.Delete(ctx, d); err != nil {
		return err
	}
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: key.Name, Namespace: key.Namespace}}
	if err := p.Patch(ctx, m, client.RawPatch("application/merge-patch+json", []byte(`{"data":{"greeting":"by hand"}}`))); err != nil {
		return err
	}
	return until(ctx, "both are repaired", func(ctx context.Context) (bool, error) {
		again := &appsv1.Deployment{}
		if err := p.Get(ctx, key, again); client.IgnoreNotFound(err) != nil {
			return false, err
		}
		if err := p.Get(ctx, key, m); err != nil {
			return false, err
		}
		return again.UID != "" && again.UID != d.UID && again.DeletionTimestamp.IsZero() && m.Data["greeting"] == "hello from red", nil
	})
}

func (p *play) status(ctx context.Context) error {
	w, err := p.settled(ctx, "two")
	if err != nil {
		return err
	}
	before := w.Generation
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"selector":"by hand"}}`))
	if err := p.Patch(ctx, w, patch); err != nil {
		return err
	}
	if w.Status.Selector != "widget=two" || w.Generation != before {
		return fmt.Errorf("the main resource writes status: %+v", w)
	}
	both := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"size":9},"status":{"observedGeneration":0}}`))
	if err := p.Status().Patch(ctx, w, both); err != nil {
		return err
	}
	if *w.Spec.Size != 1 || w.Generation != before {
		return fmt.Errorf("the status resource writes spec: %+v", w)
	}
	bad := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"conditions":[{"type":"A","status":"Perhaps",
		"lastTransitionTime":"2026-01-01T00:00:00Z","reason":"R","message":""}]}}`))
	if err := p.Status().Patch(ctx, w, bad); !apierrors.IsInvalid(err) {
		return fmt.Errorf("status is not validated: %w", err)
	}
	return nil
}

func (p *play) find(ctx context.Context) error {
	cached, served := &WidgetList{}, &WidgetList{}
	if err := p.first.GetClient().List(ctx, cached, client.InNamespace(p.ns), client.MatchingFields{byColor: "grey"}); err != nil {
		return err
	}
	if err := p.List(ctx, served, client.InNamespace(p.ns), client.MatchingFields{byColor: "grey"}); err != nil {
		return err
	}
	if len(cached.Items) != 1 || len(served.Items) != 1 || served.Items[0].Name != "two" {
		return fmt.Errorf("%d in the cache, %d from the server", len(cached.Items), len(served.Items))
	}
	return nil
}

func (p *play) handOver(ctx context.Context) error {
	p.first.stop()
	if err := <-p.first.ended; err != nil {
		return fmt.Errorf("the first ended: %w", err)
	}
	if err := p.Create(ctx, p.widget("three", "blue", "")); err != nil {
		return err
	}
	w, err := p.settled(ctx, "three")
	if err != nil {
		return err
	}
	if said := meta.FindStatusCondition(w.Status.Conditions, "Ready").Message; said != "by second" {
		return fmt.Errorf("reconciled %s", said)
	}
	return nil
}

func (p *play) remove(ctx context.Context) error {
	kept := &Widget{}
	key := client.ObjectKey{Namespace: p.ns, Name: "three"}
	if err := p.Get(ctx, key, kept); err != nil {
		return err
	}
	note := func(v string) client.Patch {
		return client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"keep":`+v+`}}}`))
	}
	if err := p.Patch(ctx, kept, note(`"true"`)); err != nil {
		return err
	}
	if err := p.Delete(ctx, kept); !apierrors.IsForbidden(err) {
		return fmt.Errorf("the webhook does not guard deletion: %w", err)
	}
	if err := p.Patch(ctx, kept, note("null")); err != nil {
		return err
	}
	for name, policy := range map[string]metav1.DeletionPropagation{
		"one": metav1.DeletePropagationBackground, "two": metav1.DeletePropagationForeground, "three": metav1.DeletePropagationBackground,
	} {
		w := &Widget{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: p.ns}}
		if err := p.Delete(ctx, w, client.PropagationPolicy(policy)); err != nil {
			return err
		}
	}
	for _, name := range []string{"one", "two", "three"} {
		key.Name = name
		if err := until(ctx, name+" is gone with what it owned", func(ctx context.Context) (bool, error) {
			for _, o := range []client.Object{&Widget{}, &corev1.ConfigMap{}, &appsv1.Deployment{}} {
				if err := p.Get(ctx, key, o); !apierrors.IsNotFound(err) {
					return false, err
				}
			}
			pods := &corev1.PodList{}
			err := p.List(ctx, pods, client.InNamespace(p.ns), client.MatchingLabels{"widget": name})
			return len(pods.Items) == 0, err
		}); err != nil {
			return err
		}
		farewell := &corev1.ConfigMap{}
		if err := p.Get(ctx, client.ObjectKey{Namespace: p.ns, Name: "farewell-" + name}, farewell); err != nil {
			return err
		}
		if farewell.Data["from"] != "second" {
			return fmt.Errorf("farewell from %s", farewell.Data["from"])
		}
	}
	return nil
}

// warnings keeps what the server warned of.
type warnings struct {
	mu   sync.Mutex
	said []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
}

func (w *warnings) heard(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.said {
		if s == text {
			return true
		}
	}
	return false
}
