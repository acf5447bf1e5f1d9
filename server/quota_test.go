package server_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// TestQuotas: a project's quota is set, refuses, is changed, shown and removed, by gRPC
// and as JSON.
func TestQuotas(t *testing.T) {
	w := newWorld(t)
	w.register()
	ctx := t.Context()
	create := func(name, project string, memory uint32) error {
		_, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{
			Name: name, Project: project, Spec: &blixardv1.VMSpec{Image: "busybox", MemoryMib: memory, NoNetwork: true},
		})
		return err
	}
	set, err := w.client.Quotas().SetQuota(ctx, &blixardv1.SetQuotaRequest{Project: "web", Limits: &blixardv1.QuotaLimits{Vms: proto.Uint64(2), MemoryMib: proto.Uint64(512)}})
	if err != nil || set.GetQuota().GetLimits().GetVms() != 2 || set.GetQuota().GetCreateIndex() == 0 || len(set.GetUsage().GetOver()) != 0 {
		t.Fatalf("%v, %v", set, err)
	}
	for _, err := range []error{create("a", "web", 256), create("free", "", 2048), create("also-free", "default", 64)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	err = create("b", "web", 512)
	if p := problem.From(err); p == nil || p.Kind != problem.NoCapacity || p.Code != "quota.exceeded" || !strings.Contains(p.Hint, "blixard quota usage web") {
		t.Errorf("more memory than is left: %+v", p)
	}
	_, err = w.client.VMs().UpdateVM(ctx, &blixardv1.UpdateVMRequest{Name: "web/a", Spec: &blixardv1.VMSpec{Image: "busybox", MemoryMib: 1024, NoNetwork: true}})
	if !problem.HasCode(err, "quota.exceeded") {
		t.Errorf("a VM grows beyond the quota: %v", err)
	}
	if err := create("c", "Not_a_name", 64); !problem.HasCode(err, "name.invalid") {
		t.Errorf("an odd name of a project: %v", err)
	}
	if got, err := w.client.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: "web/a"}); err != nil || got.GetVm().GetProject() != "web" {
		t.Errorf("%v, %v", got, err)
	}

	// Below what is there: nothing is stopped, and it is told.
	set, err = w.client.Quotas().SetQuota(ctx, &blixardv1.SetQuotaRequest{Project: "web", ExpectedIndex: set.GetQuota().GetModifyIndex(), Limits: &blixardv1.QuotaLimits{MemoryMib: proto.Uint64(128)}})
	if err != nil || set.GetQuota().GetLimits().GetVms() != 2 || !slices.Equal(set.GetUsage().GetOver(), []string{"memory_mib"}) {
		t.Errorf("%v, %v", set, err)
	}
	_, err = w.client.Quotas().SetQuota(ctx, &blixardv1.SetQuotaRequest{Project: "web", ExpectedIndex: 1, Limits: &blixardv1.QuotaLimits{}})
	if !problem.HasCode(err, "quota.index_mismatch") {
		t.Errorf("compare and set: %v", err)
	}

	// Pages have every project once.
	var names []string
	for token, more := "", true; more; {
		page, err := w.client.Quotas().QuotaUsage(ctx, &blixardv1.QuotaUsageRequest{PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range page.GetUsages() {
			names = append(names, u.GetProject())
		}
		token = page.GetNextPageToken()
		more = token != ""
	}
	if !slices.Equal(names, []string{"default", "web"}) {
		t.Errorf("the projects are %v", names)
	}
	if none, err := w.client.Quotas().QuotaUsage(ctx, &blixardv1.QuotaUsageRequest{Project: "none"}); err != nil || len(none.GetUsages()) != 1 || none.GetUsages()[0].GetVms() != 0 {
		t.Errorf("%v, %v", none, err)
	}

	code, m := w.post("/blixard.v1.QuotaService/QuotaUsage", `{"project":"web"}`, "")
	usages, _ := m["usages"].([]any)
	if code != 200 || len(usages) != 1 || usages[0].(map[string]any)["memoryMib"] != "256" {
		t.Errorf("%d %v", code, m)
	}
	if code, m = w.post("/blixard.v1.QuotaService/GetQuota", `{"project":"none"}`, ""); code != 404 {
		t.Errorf("%d %v", code, m)
	}

	if _, err := w.client.Quotas().RemoveQuota(ctx, &blixardv1.RemoveQuotaRequest{Project: "web"}); err != nil {
		t.Fatal(err)
	}
	if err := create("b", "web", 512); err != nil {
		t.Errorf("without a quota: %v", err)
	}
	if list, err := w.client.Quotas().ListQuotas(ctx, &blixardv1.ListQuotasRequest{}); err != nil || len(list.GetQuotas()) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := w.client.Quotas().RemoveQuota(ctx, &blixardv1.RemoveQuotaRequest{Project: "web"}); !problem.HasCode(err, "quota.not_found") {
		t.Errorf("once more: %v", err)
	}
}
