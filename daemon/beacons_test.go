package daemon_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/boottime"
)

const (
	// beaconPort of the outside hears beacons, and beaconEvery is how long a guest waits
	// between two of them, so what it does for a shorter time may not be seen.
	beaconPort  = 7799
	beaconEvery = 50 * time.Millisecond
	// noSilence is longer than any between two lives.
	noSilence = time.Duration(1<<63 - 1)
	// beaconBuffer holds some seconds of beacons that wait to be read.
	beaconBuffer = 1 << 20
)

// beacon is what a guest tells of itself.
type beacon struct {
	vm, boot   string
	epoch, seq uint64
}

// sendBeacons lets the VM's command tell its epoch again and again, by the guest's
// syslogd: of busybox it is what sends a line as a datagram without a process for each.
func sendBeacons(name string) func(*blixardv1.VMSpec) {
	script := fmt.Sprintf(`
		read boot </proc/sys/kernel/random/boot_id
		syslogd -n -R %s:%d &
		until [ -S /dev/log ]; do usleep 1000; done
		n=0
		while :; do
			echo "beacon %s $boot $BLIXARD_EPOCH $n"
			n=$((n + 1))
			usleep %d
		done | logger`, hubAddress, beaconPort, name, beaconEvery.Microseconds())
	return func(s *blixardv1.VMSpec) {
		s.MemoryMib, s.DiskBytes, s.Command = 64, 16<<20, []string{"sh", "-c", script}
		s.Restart = &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_always}
	}
}

// parseBeacon reads a line of syslogd, such as "<13>Nov 27 11:48:32 root: beacon a b0 1 2".
func parseBeacon(line string) (b beacon, err error) {
	_, text, _ := strings.Cut(line, ": beacon ")
	_, err = fmt.Sscan(text, &b.vm, &b.boot, &b.epoch, &b.seq)
	return b, err
}

// life is one boot of one placement of a VM, as it was heard.
type life struct {
	boot        string
	epoch       uint64
	first, last boottime.Instant
	// heard beacons of those that were sent, as their numbers tell.
	heard, sent uint64
}

// lives of a VM in the order of their first beacons.
type lives []*life

// hear puts a beacon to its life.
func (l lives) hear(b beacon, at boottime.Instant) lives {
	k := slices.IndexFunc(l, func(one *life) bool { return one.boot == b.boot && one.epoch == b.epoch })
	if k < 0 {
		k, l = len(l), append(l, &life{boot: b.boot, epoch: b.epoch, first: at})
	}
	l[k].last, l[k].sent = at, max(l[k].sent, b.seq+1)
	l[k].heard++
	return l
}

// judge gives the shortest silence between a life and the next, below zero when they
// overlap. An error is that they do, or that an epoch is lower than one before it.
func (l lives) judge() (silence time.Duration, err error) {
	silence = noSilence
	for k := 1; k < len(l); k++ {
		for _, before := range l[:k] {
			pair := fmt.Sprintf("boot %s of epoch %d and boot %s of epoch %d", before.boot, before.epoch, l[k].boot, l[k].epoch)
			if l[k].epoch < before.epoch {
				return 0, fmt.Errorf("the epoch fell: %s", pair)
			}
			if between := l[k].first.Sub(before.last); between > 0 {
				silence = min(silence, between)
				continue
			}
			overlap := min(before.last, l[k].last).Sub(l[k].first)
			return -overlap, fmt.Errorf("%s overlap for %v", pair, overlap)
		}
	}
	return silence, nil
}

// hearer stamps beacons at their arrival.
type hearer struct {
	mu sync.Mutex
	// lives of each VM.
	lives map[string]lives
}

// hearBeacons listens on the outside of the hosts until the test ends.
func hearBeacons(t testing.TB, h *hosts) *hearer {
	t.Helper()
	run(t, "", "ip", "-n", h.hub, "addr", "add", hubAddress+"/24", "dev", "bridge")
	var conn *net.UDPConn
	err := inside("/run/netns/"+h.hub, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(hubAddress), Port: beaconPort})
		return err
	})
	if err == nil {
		err = conn.SetReadBuffer(beaconBuffer)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := &hearer{lives: map[string]lives{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		line := make([]byte, 2048)
		for {
			n, err := conn.Read(line)
			if err != nil {
				return // it was closed
			}
			r.hear(string(line[:n]), boottime.Now())
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		wg.Wait()
	})
	return r
}

func (r *hearer) hear(line string, at boottime.Instant) {
	b, err := parseBeacon(line)
	if err != nil {
		return // syslogd tells that it starts, too
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lives[b.vm] = r.lives[b.vm].hear(b, at)
}

// newest is the life of a VM that was heard first last; of none it is empty.
func (r *hearer) newest(vm string) life {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lives[vm]; len(l) > 0 {
		return *l[len(l)-1]
	}
	return life{}
}

// judge of one VM.
func (r *hearer) judge(vm string) (time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lives[vm].judge()
}

// count gives how many beacons were heard of those that were sent, in how many lives, and
// how long it was from one to the next on average.
func (r *hearer) count() (heard, sent uint64, of int, every time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lived time.Duration
	for _, l := range r.lives {
		of += len(l)
		for _, one := range l {
			heard, sent, lived = heard+one.heard, sent+one.sent, lived+one.last.Sub(one.first)
		}
	}
	return heard, sent, of, lived / time.Duration(max(1, heard))
}

// TestBeaconsAreJudged: what must not be heard is found, and what may be is not.
func TestBeaconsAreJudged(t *testing.T) {
	for _, tc := range []struct {
		name, beacons, wrong string
		silence              time.Duration
	}{
		{name: "one epoch", beacons: "10 a 1, 20 a 1", silence: noSilence},
		{name: "one after the other", beacons: "10 a 1, 20 a 1, 50 b 2, 60 b 2, 70 c 4", silence: 10},
		{name: "booted again in its place", beacons: "10 a 1, 20 a 1, 25 b 1", silence: 5},
		{name: "the old one is heard once more", beacons: "10 a 1, 50 b 2, 55 a 1, 60 b 2", wrong: "boot a of epoch 1 and boot b of epoch 2 overlap for 5ns", silence: -5},
		{name: "long before", beacons: "10 a 1, 20 b 2, 30 c 3, 40 a 1", wrong: "boot a of epoch 1 and boot b of epoch 2 overlap for 0s"},
		{name: "at one instant", beacons: "10 a 1, 10 b 2", wrong: "boot a of epoch 1 and boot b of epoch 2 overlap for 0s"},
		{name: "two boots of one epoch", beacons: "10 a 1, 20 b 1, 30 a 1, 40 b 1", wrong: "boot a of epoch 1 and boot b of epoch 1 overlap for 10ns", silence: -10},
		{name: "an epoch that falls", beacons: "10 a 2, 20 b 1", wrong: "the epoch fell: boot a of epoch 2 and boot b of epoch 1"},
	} {
		r := &hearer{lives: map[string]lives{}}
		for k, text := range strings.Split(tc.beacons, ", ") {
			var at boottime.Instant
			var boot string
			var epoch uint64
			if _, err := fmt.Sscan(text, &at, &boot, &epoch); err != nil {
				t.Fatal(err)
			}
			r.hear(fmt.Sprintf("<13>Nov 27 11:48:32 root: beacon vm %s %d %d\n", boot, epoch, k), at)
		}
		silence, err := r.judge("vm")
		if got := fmt.Sprint(err); err != nil && got != tc.wrong || err == nil && tc.wrong != "" || silence != tc.silence {
			t.Errorf("%s: a silence of %v, %v", tc.name, silence, err)
		}
	}
	r := &hearer{lives: map[string]lives{}}
	if r.hear("<46>Nov 27 11:48:32 syslogd started: BusyBox v1.35.0", 1); len(r.lives) != 0 {
		t.Errorf("what is no beacon was heard as %v", r.lives)
	}
}
