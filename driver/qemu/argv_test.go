package qemu

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

func goodConfig() driver.Config {
	return driver.Config{
		ProcessID: "alloc-1.1", Dir: "/vm", VCPUs: 2, MemoryMiB: 256, Kernel: "/boot/vmlinux", Initramfs: "/boot/initramfs",
		Cmdline: "console=hvc0 quiet", Console: consoleVirtio, ACPI: true,
		Drives: []driver.Drive{{Path: "/images/base,x=y", ReadOnly: true}, {Path: "/vm/root\timage", Serial: "root"}},
		NICs: []driver.NIC{
			{MAC: "02:00:00:00:00:01", Tap: "blx0", MTU: 1400},
			{MAC: "02:00:00:00:00:02", User: &driver.UserNet{Forwards: []driver.Forward{{Protocol: "udp", HostPort: 53, GuestPort: 5353}}}},
			{MAC: "02:00:00:00:00:03", Tap: "blx1"},
		},
	}
}

// TestArgv shows the whole command; what is in it of the configuration's files is
// their descriptors.
func TestArgv(t *testing.T) {
	got, err := argv("/usr/bin/qemu-system-x86_64", driver.AcceleratorTCG, goodConfig())
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"/usr/bin/qemu-system-x86_64 -name guest=alloc-1.1",
		"-nodefaults -no-user-config -nographic -no-reboot",
		"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-accel tcg,tb-size=64",
		"-machine microvm,acpi=on,isa-serial=off,mem-merge=off,dump-guest-core=off",
		"-cpu max -smp cpus=2 -m size=256M",
		"-kernel /proc/self/fd/7 -append console=hvc0 quiet -initrd /proc/self/fd/8",
		"-add-fd fd=11,set=11 -chardev pipe,id=console,path=/dev/fdset/11",
		"-chardev socket,id=qmp,server=on,wait=off,fd=4 -mon chardev=qmp,mode=control",
		"-add-fd fd=9,set=9 -blockdev driver=raw,node-name=disk0,read-only=on,discard=unmap,file.driver=file,file.locking=on,file.filename=/dev/fdset/9",
		"-device virtio-blk-device,drive=disk0",
		"-add-fd fd=10,set=10 -blockdev driver=raw,node-name=disk1,read-only=off,discard=unmap,file.driver=file,file.locking=on,file.filename=/dev/fdset/10",
		"-device virtio-blk-device,drive=disk1,serial=root",
		"-netdev tap,id=net0,fd=5,vhost=off -device virtio-net-device,netdev=net0,mac=02:00:00:00:00:01,host_mtu=1400",
		"-netdev user,id=net1,ipv4=on,ipv6=off,net=10.0.2.0/24,host=10.0.2.2,dns=10.0.2.3,dhcpstart=10.0.2.15,restrict=off,hostfwd=udp:127.0.0.1:53-10.0.2.15:5353",
		"-device virtio-net-device,netdev=net1,mac=02:00:00:00:00:02",
		"-netdev tap,id=net2,fd=6,vhost=off -device virtio-net-device,netdev=net2,mac=02:00:00:00:00:03",
		"-device virtio-serial-device,max_ports=3 -chardev socket,id=agent,server=on,wait=off,fd=3",
		"-device virtserialport,chardev=agent,nr=1,name=blixard.agent",
		"-device virtconsole,chardev=console,nr=0",
	}, " ")
	if s := strings.Join(got, " "); s != want {
		t.Errorf("%s\nnot\n%s", strings.ReplaceAll(s, " -", "\n-"), strings.ReplaceAll(want, " -", "\n-"))
	}
	fds := describe(goodConfig())
	if !slices.Equal(fds.taps, []string{"blx0", "blx1"}) || len(fds.files) != 4 || fds.files[3].GetPath() != "/vm/root\timage" ||
		!fds.files[0].GetReadOnly() || !fds.files[2].GetReadOnly() || fds.files[3].GetReadOnly() {
		t.Errorf("%+v", fds)
	}
}

// TestArgvInjection: nothing in a configuration can add an option, or a part of
// one. Either it is refused, or the command differs in no other argument.
func TestArgvInjection(t *testing.T) {
	const evil = "file.filename=/etc/shadow"
	hostile := []string{"," + evil, "x," + evil, "x\n-drive", "x\x00y", "x=y", "-drive", "a,,b", "%d", "../x", "x y", "é", strings.Repeat("x", 200)}
	places := map[string]func(*driver.Config, string){
		"process id":        func(c *driver.Config, s string) { c.ProcessID = s },
		"kernel":            func(c *driver.Config, s string) { c.Kernel = "/boot/" + s },
		"initramfs":         func(c *driver.Config, s string) { c.Initramfs = "/boot/" + s },
		"command line":      func(c *driver.Config, s string) { c.Cmdline = s },
		"disk":              func(c *driver.Config, s string) { c.Drives[0].Path = "/images/" + s },
		"serial":            func(c *driver.Config, s string) { c.Drives[0].Serial = s },
		"tap":               func(c *driver.Config, s string) { c.NICs[0].Tap = s },
		"mac":               func(c *driver.Config, s string) { c.NICs[0].MAC = s },
		"mac with a suffix": func(c *driver.Config, s string) { c.NICs[0].MAC += s },
		"console":           func(c *driver.Config, s string) { c.Console = s },
		"protocol":          func(c *driver.Config, s string) { c.NICs[1].User.Forwards[0].Protocol = s },
	}
	plain, err := argv("/qemu", driver.AcceleratorTCG, goodConfig())
	if err != nil {
		t.Fatal(err)
	}
	taken := 0
	for place, put := range places {
		for _, s := range hostile {
			cfg := goodConfig()
			put(&cfg, s)
			got, err := argv("/qemu", driver.AcceleratorTCG, cfg)
			if err != nil {
				if !problem.Is(err, problem.Invalid) {
					t.Errorf("%s %q: %v", place, s, err)
				}
				continue
			}
			taken++
			if len(got) != len(plain) {
				t.Errorf("%s %q: %d arguments, not %d", place, s, len(got), len(plain))
				continue
			}
			var changed []string
			for i := range got {
				if got[i] != plain[i] {
					changed = append(changed, got[i])
				}
			}
			allowed := []string{"guest=" + strings.ReplaceAll(s, ",", ",,"), s}
			switch {
			case place == "serial" && len(changed) == 1 && changed[0] == "virtio-blk-device,drive=disk0,serial="+s:
			case len(changed) > 1 || len(changed) == 1 && !slices.Contains(allowed, changed[0]):
				t.Errorf("%s %q: changed %q", place, s, changed)
			}
		}
	}
	if taken == 0 {
		t.Error("everything was refused")
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*driver.Config)
		code   string
	}{
		"good":              {func(*driver.Config) {}, ""},
		"no id":             {func(c *driver.Config) { c.ProcessID = "" }, "driver.process_id"},
		"much memory":       {func(c *driver.Config) { c.MemoryMiB = 1<<20 + 1 }, "driver.memory"},
		"relative":          {func(c *driver.Config) { c.Drives[0].Path = "x" }, "driver.path"},
		"long command line": {func(c *driver.Config) { c.Cmdline = strings.Repeat("x", 2000) }, "driver.cmdline"},
		"console":           {func(c *driver.Config) { c.Console = "tty0" }, "driver.console"},
		"long serial":       {func(c *driver.Config) { c.Drives[0].Serial = strings.Repeat("x", 21) }, "driver.serial"},
		"serial twice":      {func(c *driver.Config) { c.Drives[0].Serial = "root" }, "driver.serial"},
		"five nics":         {func(c *driver.Config) { c.NICs = make([]driver.NIC, 5) }, "driver.nics"},
		"no mac":            {func(c *driver.Config) { c.NICs[0].MAC = "" }, "driver.mac"},
		"mac of a group":    {func(c *driver.Config) { c.NICs[0].MAC = "01:00:00:00:00:01" }, "driver.mac"},
		"mac of zeros":      {func(c *driver.Config) { c.NICs[0].MAC = "00:00:00:00:00:00" }, "driver.mac"},
		"mac in capitals":   {func(c *driver.Config) { c.NICs[0].MAC = "02:00:00:00:00:0A" }, "driver.mac"},
		"long mac":          {func(c *driver.Config) { c.NICs[0].MAC = "02:00:00:00:00:00:00:01" }, "driver.mac"},
		"mac twice":         {func(c *driver.Config) { c.NICs[1].MAC = c.NICs[0].MAC }, "driver.mac"},
		"small mtu":         {func(c *driver.Config) { c.NICs[0].MTU = 67 }, "driver.mtu"},
		"large mtu":         {func(c *driver.Config) { c.NICs[0].MTU = 65536 }, "driver.mtu"},
		"no tap":            {func(c *driver.Config) { c.NICs[0].Tap = "" }, "driver.tap"},
		"long tap":          {func(c *driver.Config) { c.NICs[0].Tap = strings.Repeat("x", 16) }, "driver.tap"},
		"tap twice":         {func(c *driver.Config) { c.NICs[2].Tap = c.NICs[0].Tap }, "driver.tap"},
		"tap and user":      {func(c *driver.Config) { c.NICs[1].Tap = "blx7" }, "driver.tap"},
		"ipv6":              {func(c *driver.Config) { c.NICs[1].User.Network = netip.MustParsePrefix("fd00::/64") }, "driver.user_net"},
		"small network":     {func(c *driver.Config) { c.NICs[1].User.Network = netip.MustParsePrefix("10.0.0.0/31") }, "driver.user_net"},
		"guest outside":     {func(c *driver.Config) { c.NICs[1].User.Guest = netip.MustParseAddr("10.0.3.1") }, "driver.user_net"},
		"guest is router":   {func(c *driver.Config) { c.NICs[1].User.Guest = netip.MustParseAddr("10.0.2.2") }, "driver.user_net"},
		"no port":           {func(c *driver.Config) { c.NICs[1].User.Forwards[0].GuestPort = 0 }, "driver.user_net"},
		"host is ipv6":      {func(c *driver.Config) { c.NICs[1].User.Forwards[0].HostAddress = netip.IPv6Loopback() }, "driver.user_net"},
		"forward twice": {func(c *driver.Config) {
			u := c.NICs[1].User
			u.Forwards = append(u.Forwards, u.Forwards[0])
			u.Forwards[1].GuestPort++
		}, "driver.user_net"},
		"many forwards": {func(c *driver.Config) { c.NICs[1].User.Forwards = make([]driver.Forward, 65) }, "driver.user_net"},
		"many disks": {func(c *driver.Config) {
			for i := range 23 {
				c.Drives = append(c.Drives, driver.Drive{Path: fmt.Sprintf("/disk%d", i)})
			}
		}, "driver.devices"},
		"disks without acpi": {func(c *driver.Config) {
			c.ACPI = false
			c.Drives = append(c.Drives, driver.Drive{Path: "/a"}, driver.Drive{Path: "/b"}, driver.Drive{Path: "/c"})
		}, "driver.devices"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := goodConfig()
			tc.change(&cfg)
			err := check(cfg)
			if tc.code == "" && err != nil || tc.code != "" && (!problem.Is(err, problem.Invalid) || !problem.HasCode(err, tc.code)) {
				t.Errorf("%v", err)
			}
		})
	}
}
