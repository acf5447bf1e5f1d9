//go:build linux

package boottest_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
)

// A machine lives and ends with each kernel: commands run, what they left behind is ended, and the disk is
// as clean as after an unmount, with all that was written.
func TestLife(t *testing.T) {
	b := boottest.Bundle(t)
	for _, name := range []string{bundle.KernelOwn, bundle.KernelDebian} {
		t.Run(name, func(t *testing.T) {
			disk := writable(t)
			m := boottest.Boot(t, boottest.Spec{Kernel: boottest.Kernel(t, b, name), MemoryMiB: 256, Image: image(t, b), Writable: disk})
			s := m.Connect()
			m.Ready(s, config("sh", "-c", "trap 'echo kept >/root/proof; exit 3' TERM; (trap '' TERM HUP; sleep 1000000) & wait"))
			for what, want := range map[string]string{
				"hostname": "test\n", "id -u": "0\n", "cat /proc/1/comm": "init\n", "ls /blixard 2>/dev/null": "", "cat /proc/sys/kernel/hostname": "test\n",
				"[ -t 0 ] || echo none":          "none\n",
				"ifconfig lo | grep -c LOOPBACK": "1\n",
				"touch /etc/new && cat /etc/new": "",
			} {
				if out, _ := m.Exec(s, "sh", "-c", what); out != want {
					t.Errorf("%s: %q, want %q", what, out, want)
				}
			}
			if out, code := m.Exec(s, "sh", "-c", "exec sleep 1000000 </dev/null >/dev/null 2>&1 &"); code != 0 {
				t.Errorf("a process left behind: %q, %d", out, code)
			}
			st, err := s.Stats(t.Context())
			if err != nil || st.MemTotal == 0 || st.CPUs != 1 || st.Processes < 3 || st.RootTotal == 0 {
				t.Errorf("%+v, %v", st, err)
			}
			if err := s.Stop(t.Context(), time.Hour); err != nil {
				t.Fatal(err)
			}
			if exit := m.AwaitEvent(s, guest.EventExited).Status.Exit; *exit != (guest.Exit{Reason: guest.ExitCommand, Code: 3, Requested: true}) {
				t.Errorf("%+v", *exit)
			}
			m.PowerOff(s)
			clean(t, disk)
			if out, err := exec.Command("debugfs", "-R", "cat /upper/root/proof", disk).Output(); err != nil || string(out) != "kept\n" {
				t.Errorf("the disk has %q, %v", out, err)
			}
		})
	}
}

// clean checks that a disk is as after an unmount.
func clean(t *testing.T, disk string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-n", "-f", disk).CombinedOutput(); err != nil {
		t.Errorf("the disk is not clean: %v\n%s", err, out)
	}
}

// A machine's end has its reason, whoever brought it about.
func TestEnds(t *testing.T) {
	b := boottest.Bundle(t)
	k := boottest.Kernel(t, b, bundle.KernelOwn)
	memory := config("sh", "-c", "echo gone >/root/x; exit 7")
	memory.Writable = nil
	terminal := config("sh", "-c", "[ -t 0 ] && exit 9")
	terminal.TTY = true
	damaged := config("true")
	damaged.Image.FSType = "vfat"
	missing := config("true")
	missing.Writable = &guest.Disk{Device: "/dev/vdz", FSType: "ext4"}
	serial := config("true")
	serial.Image.Device = "serial:nobody"
	volume := config("true")
	volume.Mounts = []guest.Mount{{Disk: guest.Disk{Device: guest.DevicePrefix + "nobody", FSType: "ext4"}, Path: "/data"}}
	nic := config("true")
	nic.Interfaces = []guest.Interface{{MAC: mac}}
	file := config("true")
	file.Files = []guest.File{{Path: "/etc"}}
	for name, c := range map[string]struct {
		cfg  guest.BootConfig
		want guest.Exit
		says string
	}{
		"without a disk":    {memory, guest.Exit{Reason: guest.ExitCommand, Code: 7}, ""},
		"with a terminal":   {terminal, guest.Exit{Reason: guest.ExitCommand, Code: 9}, ""},
		"no such command":   {config("none-such"), guest.Exit{Reason: guest.ExitCommand, Code: guest.CodeNotFound}, "not found"},
		"reboot":            {config("sh", "-c", "reboot; exec sleep 1000000"), guest.Exit{Reason: guest.ExitReboot, Code: 143, Signal: 15}, ""},
		"power-off":         {config("sh", "-c", "poweroff; exec sleep 1000000"), guest.Exit{Reason: guest.ExitPowerOff, Code: 143, Signal: 15}, ""},
		"no file system":    {damaged, guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed}, "build the root: mount /dev/vda"},
		"missing disk":      {missing, guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed}, "/dev/vdz did not appear"},
		"missing volume":    {volume, guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed}, "volume /data: drive serial:nobody did not appear"},
		"missing NIC":       {nic, guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed}, "interface " + mac + ": no such NIC appeared"},
		"a file's place":    {file, guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed}, "file: make /etc: is a directory"},
		"missing by serial": {serial, guest.Exit{Reason: guest.ExitBootFailed, Code: guest.CodeBootFailed}, "serial:nobody did not appear"},
	} {
		t.Run(name, func(t *testing.T) {
			m := boottest.Boot(t, boottest.Spec{Kernel: k, MemoryMiB: 128, Image: image(t, b), Writable: writable(t)})
			s := m.Connect()
			if _, err := s.Configure(t.Context(), c.cfg); err != nil {
				t.Fatal(err)
			}
			exit := *m.AwaitEvent(s, guest.EventExited).Status.Exit
			if message := exit.Message; !strings.Contains(message, c.says) || (message == "") != (c.says == "") {
				t.Errorf("it says %q", message)
			}
			if exit.Message = ""; exit != c.want {
				t.Errorf("%+v, want %+v", exit, c.want)
			}
			m.PowerOff(s)
		})
	}
}
