// What programs on client-go do, against the server that KUBECONFIG names: typed clients in protobuf, informers, paging,
// server-side apply, the dynamic and the metadata client over every kind that discovery lists, leader election.
//
// It works in a namespace of its own, deletes it at the end, and ends with 0 when everything held.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const patience = 60 * time.Second

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		fail("kubeconfig", err)
	}
	config.QPS, config.Burst = 1000, 1000
	protobuf := rest.CopyConfig(config)
	protobuf.ContentType = "application/vnd.kubernetes.protobuf"
	protobuf.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	client := kubernetes.NewForConfigOrDie(protobuf)

	ns := fmt.Sprintf("go-%d", time.Now().UnixNano())
	space := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, space, metav1.CreateOptions{}); err != nil {
		fail("namespace", err)
	}
	defer func() { _ = client.CoreV1().Namespaces().Delete(context.Background(), ns, metav1.DeleteOptions{}) }()

	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"objects keep what was sent", func() error { return roundTrips(ctx, client, ns) }},
		{"informers see every change", func() error { return informer(ctx, client, ns) }},
		{"lists come in pages", func() error { return pages(ctx, client, ns) }},
		{"server-side apply", func() error { return apply(ctx, client, ns) }},
		{"every kind is listed", func() error { return everyKind(ctx, config) }},
		{"leader election", func() error { return election(ctx, client, ns) }},
	} {
		begun := time.Now()
		if err := step.run(); err != nil {
			fail(step.name, err)
		}
		fmt.Printf("ok   %s (%.1f s)\n", step.name, time.Since(begun).Seconds())
	}
}

func fail(what string, err error) {
	fmt.Printf("FAIL %s: %v\n", what, err)
	os.Exit(1)
}

func roundTrips(ctx context.Context, client kubernetes.Interface, ns string) error {
	grace, replicas := int64(5), int32(3)
	pod := corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		NodeSelector:                  map[string]string{"a": "b"},
		Containers: []corev1.Container{{
			Name: "c", Image: "image:1", Command: []string{"sleep", "1"},
			Env:   []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
			Resources: corev1.ResourceRequirements{
				Limits: corev1.ResourceList{"cpu": resource.MustParse("1500m"), "memory": resource.MustParse("64Mi")},
			},
			ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{
				HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("http")}}},
		}},
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	}
	labels := map[string]string{"app": "d"}
	made, err := client.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "d"},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	read, err := client.AppsV1().Deployments(ns).Get(ctx, "d", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if !equality.Semantic.DeepEqual(made.Spec, read.Spec) {
		return fmt.Errorf("created %v, read %v", made.Spec, read.Spec)
	}
	if got := read.Spec.Template.Spec.Containers[0].Resources.Limits.Cpu().String(); got != "1500m" {
		return fmt.Errorf("cpu limit is %s", got)
	}
	if read.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || *read.Spec.RevisionHistoryLimit != 10 {
		return fmt.Errorf("defaults are missing: %v", read.Spec)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"bytes": {0, 1, 255}}}
	if secret, err = client.CoreV1().Secrets(ns).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return err
	}
	if len(secret.Data["bytes"]) != 3 || secret.Data["bytes"][2] != 255 {
		return fmt.Errorf("bytes changed: %v", secret.Data)
	}
	read.ResourceVersion = "1"
	if _, err = client.AppsV1().Deployments(ns).Update(ctx, read, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		return fmt.Errorf("an old version is no conflict: %v", err)
	}
	if _, err = client.AppsV1().Deployments(ns).Get(ctx, "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return fmt.Errorf("not a not-found: %v", err)
	}
	scale, err := client.AppsV1().Deployments(ns).GetScale(ctx, "d", metav1.GetOptions{})
	if err != nil || scale.Spec.Replicas != 3 {
		return fmt.Errorf("scale %v: %v", scale, err)
	}
	return nil
}

func informer(ctx context.Context, client kubernetes.Interface, ns string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const n = 100
	var added, updated, deleted atomic.Int32
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(ns))
	maps := factory.Core().V1().ConfigMaps().Informer()
	if _, err := maps.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { added.Add(1) },
		UpdateFunc: func(any, any) { updated.Add(1) },
		DeleteFunc: func(any) { deleted.Add(1) },
	}); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), maps.HasSynced) {
		return fmt.Errorf("the cache does not fill")
	}
	before := added.Load()
	api := client.CoreV1().ConfigMaps(ns)
	for i := range n {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%d", i)}, Data: map[string]string{"k": "v"}}
		made, err := api.Create(ctx, m, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		made.Data["k"] = "w"
		if _, err := api.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	for i := range n / 2 {
		if err := api.Delete(ctx, fmt.Sprintf("m%d", i), metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, patience, true, func(context.Context) (bool, error) {
		return added.Load()-before == n && updated.Load() >= n && deleted.Load() == n/2, nil
	})
}

func pages(ctx context.Context, client kubernetes.Interface, ns string) error {
	seen := map[string]bool{}
	options := metav1.ListOptions{Limit: 7}
	for {
		page, err := client.CoreV1().ConfigMaps(ns).List(ctx, options)
		if err != nil {
			return err
		}
		for _, m := range page.Items {
			if seen[m.Name] {
				return fmt.Errorf("%s came twice", m.Name)
			}
			seen[m.Name] = true
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	whole, err := client.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
	if err != nil || len(whole.Items) != len(seen) {
		return fmt.Errorf("%d in pages, %d at once: %v", len(seen), len(whole.Items), err)
	}
	return nil
}

func apply(ctx context.Context, client kubernetes.Interface, ns string) error {
	api := client.CoreV1().ConfigMaps(ns)
	one := applycorev1.ConfigMap("applied", ns).WithData(map[string]string{"a": "1"})
	if _, err := api.Apply(ctx, one, metav1.ApplyOptions{FieldManager: "one"}); err != nil {
		return err
	}
	two := applycorev1.ConfigMap("applied", ns).WithData(map[string]string{"a": "2"})
	if _, err := api.Apply(ctx, two, metav1.ApplyOptions{FieldManager: "two"}); !apierrors.IsConflict(err) {
		return fmt.Errorf("no conflict: %v", err)
	}
	got, err := api.Apply(ctx, two, metav1.ApplyOptions{FieldManager: "two", Force: true})
	if err != nil || got.Data["a"] != "2" {
		return fmt.Errorf("forced: %v %v", got, err)
	}
	mine, err := applycorev1.ExtractConfigMap(got, "two")
	if err != nil || mine.Data["a"] != "2" {
		return fmt.Errorf("extracted: %v %v", mine, err)
	}
	return nil
}

func everyKind(ctx context.Context, config *rest.Config) error {
	client := kubernetes.NewForConfigOrDie(config)
	typed, partial := dynamic.NewForConfigOrDie(config), metadata.NewForConfigOrDie(config)
	lists, err := client.Discovery().ServerPreferredResources()
	if err != nil {
		return err
	}
	n := 0
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return err
		}
		for _, r := range list.APIResources {
			if !slices.Contains(r.Verbs, "list") {
				continue
			}
			gvr := gv.WithResource(r.Name)
			if _, err := typed.Resource(gvr).List(ctx, metav1.ListOptions{}); err != nil {
				return fmt.Errorf("%v: %w", gvr, err)
			}
			if _, err := partial.Resource(gvr).List(ctx, metav1.ListOptions{}); err != nil {
				return fmt.Errorf("metadata of %v: %w", gvr, err)
			}
			n++
		}
	}
	if n < 50 {
		return fmt.Errorf("only %d kinds", n)
	}
	return nil
}

func election(ctx context.Context, client kubernetes.Interface, ns string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Name: "leader", Namespace: ns},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: "me"},
	}
	leading := false
	leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 4 * time.Second, RenewDeadline: 3 * time.Second, RetryPeriod: time.Second, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { leading = true; cancel() },
			OnStoppedLeading: func() {},
		},
	})
	if !leading {
		return fmt.Errorf("never led")
	}
	return nil
}
