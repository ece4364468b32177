package main

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applyappsv1 "k8s.io/client-go/applyconfigurations/apps/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	applymetav1 "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

const (
	finalizer = "operator.example.com/farewell"
	byColor   = "spec.color"
)

// reconciler makes of each Widget a ConfigMap with its greeting, by server-side apply, and a Deployment of its size, by
// read and update; when the Widget goes, it writes a farewell first.
type reconciler struct {
	client.Client
	recorder events.EventRecorder
	// Which of the two operators this is: the Widget's events and status say who acted.
	name string
}

func (r *reconciler) setUp(m ctrl.Manager) error {
	if err := m.GetFieldIndexer().IndexField(context.Background(), &Widget{}, byColor, func(o client.Object) []string {
		return []string{o.(*Widget).Spec.Color}
	}); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(m).
		For(&Widget{}).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.ConfigMap{}, builder.OnlyMetadata).
		Complete(r)
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	w := &Widget{}
	if err := r.Get(ctx, request.NamespacedName, w); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !w.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, r.farewell(ctx, w)
	}
	before := w.DeepCopyObject().(*Widget)
	if controllerutil.AddFinalizer(w, finalizer) {
		if err := r.Patch(ctx, w, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
			return ctrl.Result{}, err
		}
		r.recorder.Eventf(w, nil, corev1.EventTypeNormal, "Adopted", "Reconcile", "adopted by %s", r.name)
	}
	if err := r.greet(ctx, w); err != nil {
		return ctrl.Result{}, err
	}
	d, err := r.deploy(ctx, w)
	if err != nil {
		return ctrl.Result{}, err
	}
	before = w.DeepCopyObject().(*Widget)
	w.Status.Replicas = d.Status.Replicas
	w.Status.Selector = "widget=" + w.Name
	w.Status.ObservedGeneration = w.Generation
	ready := metav1.Condition{Type: "Ready", Status: metav1.ConditionFalse, Reason: "Growing", ObservedGeneration: w.Generation}
	if d.Status.ObservedGeneration == d.Generation && d.Status.Replicas == *w.Spec.Size {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionTrue, "Grown", "by "+r.name
	}
	meta.SetStatusCondition(&w.Status.Conditions, ready)
	return ctrl.Result{}, r.Status().Patch(ctx, w, client.MergeFrom(before))
}

func (r *reconciler) greet(ctx context.Context, w *Widget) error {
	owner := applymetav1.OwnerReference().WithAPIVersion(groupVersion.String()).WithKind("Widget").WithName(w.Name).
		WithUID(w.UID).WithController(true).WithBlockOwnerDeletion(true)
	m := applycorev1.ConfigMap(w.Name, w.Namespace).WithOwnerReferences(owner).
		WithData(map[string]string{"greeting": w.Spec.Greeting})
	return r.Apply(ctx, m, client.FieldOwner("widget-operator"), client.ForceOwnership)
}

func (r *reconciler) deploy(ctx context.Context, w *Widget) (*appsv1.Deployment, error) {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: w.Name, Namespace: w.Namespace}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, d, func() error {
		labels := map[string]string{"widget": w.Name}
		d.Spec.Replicas = w.Spec.Size
		d.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
		d.Spec.Template.Labels = labels
		if len(d.Spec.Template.Spec.Containers) == 0 {
			d.Spec.Template.Spec.Containers = []corev1.Container{{}}
		}
		c := &d.Spec.Template.Spec.Containers[0]
		c.Name, c.Image = "c", "image:1"
		return controllerutil.SetControllerReference(w, d, r.Scheme())
	})
	return d, err
}

func (r *reconciler) farewell(ctx context.Context, w *Widget) error {
	if !controllerutil.ContainsFinalizer(w, finalizer) {
		return nil
	}
	note := applycorev1.ConfigMap("farewell-"+w.Name, w.Namespace).WithData(map[string]string{"from": r.name})
	if err := r.Apply(ctx, note, client.FieldOwner("widget-operator"), client.ForceOwnership); err != nil {
		return err
	}
	controllerutil.RemoveFinalizer(w, finalizer)
	if err := r.Update(ctx, w); err != nil && !apierrors.IsConflict(err) {
		return client.IgnoreNotFound(err)
	}
	return nil
}

// sideBySide applies a status as a second writer would: its fields are its own.
func sideBySide(ctx context.Context, c client.Client, d *appsv1.Deployment) error {
	mine := applyappsv1.Deployment(d.Name, d.Namespace).WithAnnotations(map[string]string{"second": "writer"})
	return c.Apply(ctx, mine, client.FieldOwner("second-writer"))
}

// door is the operator's admission: it defaults, warns and refuses.
type door struct{}

func (door) Default(_ context.Context, w *Widget) error {
	if w.Spec.Greeting == "" {
		w.Spec.Greeting = "hello from " + w.Spec.Color
	}
	return nil
}

func (door) ValidateCreate(_ context.Context, w *Widget) (admission.Warnings, error) {
	return door{}.check(w)
}

func (door) ValidateUpdate(_ context.Context, _, w *Widget) (admission.Warnings, error) {
	return door{}.check(w)
}

func (door) ValidateDelete(_ context.Context, w *Widget) (admission.Warnings, error) {
	if w.Annotations["keep"] == "true" {
		return nil, fmt.Errorf("%s is kept", w.Name)
	}
	return nil, nil
}

func (door) check(w *Widget) (admission.Warnings, error) {
	if strings.Contains(w.Spec.Greeting, "goodbye") {
		return nil, fmt.Errorf("%q is no greeting", w.Spec.Greeting)
	}
	if w.Spec.Color == "grey" {
		return admission.Warnings{"grey is dull"}, nil
	}
	return nil, nil
}
