//go:build soak

package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// soakLanes VMs boot at a time: as many as a small machine has processors.
const soakLanes = 2

// bootsWanted of each kernel; `make soak-boots` sets them.
func bootsWanted(t *testing.T) int {
	boots := 300
	if text := os.Getenv("BLIXARD_TEST_BOOTS"); text != "" {
		var err error
		if boots, err = strconv.Atoi(text); err != nil || boots < 1 {
			t.Fatalf("BLIXARD_TEST_BOOTS is %q", text)
		}
	}
	return boots
}

// TestSoakBoots boots each kernel of the bundle many times, every boot with one
// try only, and counts those that came up.
func TestSoakBoots(t *testing.T) {
	wanted := bootsWanted(t)
	n := startNode(t, "--boot-tries", "1")
	var kernels []string
	eventually(t, "the node is registered", 30*time.Second, func() bool {
		st, err := n.client.Nodes().GetStatus(t.Context(), &blixardv1.GetStatusRequest{})
		kernels = st.GetNode().GetFingerprint().GetKernels()
		return err == nil && len(kernels) > 0
	})
	if len(kernels) < 2 {
		t.Fatalf("the bundle has only the kernels %v: run `make kernel`", kernels)
	}
	for _, kernel := range kernels {
		n.soakKernel(kernel, wanted)
	}
}

func (n *node) soakKernel(kernel string, wanted int) {
	began := time.Now()
	var mu sync.Mutex // guards what follows
	next, good, slowest := 0, 0, time.Duration(0)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next
	}
	var lanes sync.WaitGroup
	for range soakLanes {
		lanes.Go(func() {
			for k := take(); k <= wanted; k = take() {
				ready, err := n.bootOnce(fmt.Sprintf("%s-%d", kernel, k), kernel)
				if err != nil {
					n.t.Errorf("boot %d of kernel %s: %v", k, kernel, err)
					continue
				}
				mu.Lock()
				good, slowest = good+1, max(slowest, ready)
				mu.Unlock()
			}
		})
	}
	lanes.Wait()
	n.t.Logf("kernel %s: %d of %d boots, the slowest ready after %v, %v in all", kernel, good, wanted, slowest, time.Since(began).Round(time.Second))
}

// bootOnce boots a VM, deletes it, and gives the time until its guest was ready.
func (n *node) bootOnce(name, kernel string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*bootLimit)
	defer cancel()
	_, err := n.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: name, Spec: &blixardv1.VMSpec{
		Image: "busybox", MemoryMib: 128, DiskBytes: 64 << 20, Command: []string{"sleep", "1000000"}, Kernel: kernel, Restart: never(),
	}})
	if err != nil {
		return 0, err
	}
	vm, err := n.client.WaitVM(ctx, name, func(vm *blixardv1.VM, _ bool) (bool, error) {
		if s := vm.GetStatus(); s.GetState() == blixardv1.AllocationState_failed {
			return true, fmt.Errorf("it failed: %s: %s", s.GetReason(), s.GetMessage())
		}
		return running(vm), nil
	})
	if err == nil && vm.GetStatus().GetKernel() != kernel {
		err = fmt.Errorf("it booted kernel %q", vm.GetStatus().GetKernel())
	}
	if _, deleteErr := n.client.VMs().DeleteVM(ctx, &blixardv1.DeleteVMRequest{Name: name, Force: true}); deleteErr != nil {
		return 0, errors.Join(err, deleteErr)
	}
	_, goneErr := n.client.WaitVM(ctx, name, func(*blixardv1.VM, bool) (bool, error) { return false, nil })
	if !problem.Is(goneErr, problem.NotFound) {
		return 0, errors.Join(err, goneErr)
	}
	return time.Duration(vm.GetStatus().GetReadyMs()) * time.Millisecond, err
}
