package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
)

func TestChecker(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	for _, tc := range []struct {
		name    string
		check   *blixardv1.HealthCheck
		results string // + and -, a second apart from the first second on
		want    string // s, h, u
	}{
		{"three failures by default", &blixardv1.HealthCheck{}, "+--+---+", "hhhhhhuh"},
		{"one is enough", &blixardv1.HealthCheck{Retries: 1}, "-+-", "uhu"},
		{"never up", &blixardv1.HealthCheck{Retries: 2}, "---", "suu"},
		{"failures of the start do not count", &blixardv1.HealthCheck{Retries: 1, StartPeriod: durationpb.New(3 * time.Second)}, "---", "ssu"},
		{"the start is over with the first success", &blixardv1.HealthCheck{Retries: 1, StartPeriod: durationpb.New(time.Hour)}, "-+-", "shu"},
	} {
		c := newChecker(tc.check, begin)
		var got strings.Builder
		for k, r := range tc.results {
			got.WriteByte(c.result(r == '+', begin.Add(time.Duration(k+1)*time.Second)).String()[0])
		}
		if got.String() != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got.String(), tc.want)
		}
	}
	c := newChecker(&blixardv1.HealthCheck{Interval: durationpb.New(time.Minute), Timeout: durationpb.New(time.Second)}, begin)
	if c.pause() != startInterval || c.timeout() != time.Second {
		t.Errorf("a VM that starts is checked every %v for %v", c.pause(), c.timeout())
	}
	c.result(true, begin)
	if c.pause() != time.Minute {
		t.Errorf("one that is up is checked every %v", c.pause())
	}
	if c := newChecker(&blixardv1.HealthCheck{}, begin); c.timeout() != healthTimeout || c.pause() != startInterval {
		t.Errorf("defaults: %v, %v", c.timeout(), c.pause())
	}
}

func TestBootConfig(t *testing.T) {
	image := func(change func(*blixardv1.Image)) *blixardv1.Image {
		i := &blixardv1.Image{Name: "r/app:1", FsType: "erofs", Source: "registry", Config: &blixardv1.ImageConfig{
			Entrypoint: []string{"/app"}, Command: []string{"serve"}, Env: []string{"A=1"}, User: "app", WorkingDir: "/srv", StopSignal: 3,
		}}
		if change != nil {
			change(i)
		}
		return i
	}
	for _, tc := range []struct {
		name  string
		image *blixardv1.Image
		spec  *blixardv1.VMSpec
		check func(c guest.BootConfig) bool
	}{
		{"the image's own", image(nil), &blixardv1.VMSpec{}, func(c guest.BootConfig) bool {
			return slices.Equal(c.Argv, []string{"/app", "serve"}) && c.User == "app" && c.WorkDir == "/srv" && c.StopSignal == 3 &&
				slices.Equal(c.Env, []string{"A=1", "BLIXARD_EPOCH=3"}) && c.Hostname == "web" && c.Image.FSType == "erofs" && !c.Init
		}},
		{"the owner's instead", image(nil), &blixardv1.VMSpec{
			Command: []string{"check"}, User: "1000:1000", WorkingDir: "/", StopSignal: 15, Hostname: "h",
			Env: []*blixardv1.EnvVar{{Name: "BLIXARD_EPOCH", Value: "9"}, {Name: "A", Value: "2"}, {Name: "B"}},
		}, func(c guest.BootConfig) bool {
			return slices.Equal(c.Argv, []string{"/app", "check"}) && c.User == "1000:1000" && c.WorkDir == "/" && c.StopSignal == 15 && c.Hostname == "h" &&
				slices.Equal(c.Env, []string{"A=2", "B=", "BLIXARD_EPOCH=3"})
		}},
		{"files and keys", image(nil), &blixardv1.VMSpec{
			Files: []*blixardv1.GuestFile{{Path: "/etc/a", Content: []byte("x"), Mode: 0o600, Uid: 1, Gid: 2}}, SshKeys: []string{"ssh-ed25519 A"}, UserData: "#cloud-config",
		}, func(c guest.BootConfig) bool {
			return len(c.Files) == 1 && c.Files[0].Path == "/etc/a" && c.Files[0].Mode == 0o600 && c.Files[0].UID == 1 && c.Files[0].GID == 2 &&
				string(c.Files[0].Content) == "x" && c.SSHKeys[0] == "ssh-ed25519 A" && c.UserData == "#cloud-config"
		}},
		{"a system by its init", image(func(i *blixardv1.Image) {
			i.Config = &blixardv1.ImageConfig{Command: []string{"/lib/systemd/systemd"}, StopSignal: 37}
		}), &blixardv1.VMSpec{}, func(c guest.BootConfig) bool { return c.Init && c.StopSignal == 0 }},
		{
			"an init as a command", image(func(i *blixardv1.Image) { i.Config = &blixardv1.ImageConfig{Command: []string{"/sbin/init"}} }),
			&blixardv1.VMSpec{Init: blixardv1.InitMode_command}, func(c guest.BootConfig) bool { return !c.Init },
		},
		{
			"a system without a command", image(func(i *blixardv1.Image) { i.Config = &blixardv1.ImageConfig{} }),
			&blixardv1.VMSpec{Init: blixardv1.InitMode_system}, func(c guest.BootConfig) bool { return c.Init && len(c.Argv) == 0 },
		},
		{
			"a disk boots as a system", image(func(i *blixardv1.Image) { i.Config, i.Source = nil, "disk" }), &blixardv1.VMSpec{},
			func(c guest.BootConfig) bool { return c.Init },
		},
		{
			"an image of an older record", &blixardv1.Image{Name: "busybox"}, &blixardv1.VMSpec{Command: []string{"sh"}},
			func(c guest.BootConfig) bool { return c.Image.FSType == "ext4" },
		},
	} {
		rec := &blixardv1.AllocationRecord{Allocation: &blixardv1.Allocation{VmName: "web", Epoch: 3, Spec: tc.spec, Volumes: []*blixardv1.AllocatedVolume{
			{Path: "/data"}, {Path: "/ro", ReadOnly: true},
		}}, Image: tc.image}
		c, err := bootConfig(rec)
		if err != nil || !tc.check(c) {
			t.Errorf("%s: %+v, %v", tc.name, c, err)
		}
		if len(c.Mounts) != 2 || c.Mounts[0].Disk.Device != "serial:"+volumeSerial(0) || c.Mounts[1].Path != "/ro" || !c.Mounts[1].ReadOnly {
			t.Errorf("%s: mounts %+v", tc.name, c.Mounts)
		}
	}
	_, err := bootConfig(&blixardv1.AllocationRecord{Allocation: &blixardv1.Allocation{VmName: "web"}, Image: image(func(i *blixardv1.Image) { i.Config = &blixardv1.ImageConfig{} })})
	if !problem.HasCode(err, "image.no_command") || problem.From(err).Hint == "" {
		t.Errorf("an image without a command: %v", err)
	}
}
