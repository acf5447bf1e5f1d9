package image

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

// ext4Of makes a file system of so many MiB with a file in it.
func ext4Of(t testing.TB, mib int, text string) []byte {
	t.Helper()
	src, path := t.TempDir(), filepath.Join(t.TempDir(), "ext4")
	if err := os.WriteFile(filepath.Join(src, "hello"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/usr/sbin/mkfs.ext4", "-q", "-F", "-d", src, path, strconv.Itoa(mib)+"M").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// piece is a partition to be written.
type piece struct {
	kind byte
	guid []byte
	data []byte
}

const sector = 512

// mbrDisk lays pieces one MiB apart from each other behind a master boot record;
// those beyond the third become logical partitions.
func mbrDisk(pieces ...piece) []byte {
	le := binary.LittleEndian
	at := func(n int) int {
		off := 1 << 20
		for _, p := range pieces[:n] {
			off += 1<<20 + len(p.data)
		}
		return off
	}
	disk := make([]byte, at(len(pieces)))
	entry := func(record, slot int, kind byte, first, count int) {
		e := disk[record+446+16*slot:]
		e[4] = kind
		le.PutUint32(e[8:], uint32(first))
		le.PutUint32(e[12:], uint32(count))
		disk[record+510], disk[record+511] = 0x55, 0xaa
	}
	extended := 0
	for n, p := range pieces {
		copy(disk[at(n):], p.data)
		if n < 3 {
			entry(0, n, p.kind, at(n)/sector, len(p.data)/sector)
			continue
		}
		record := at(n) - 1<<19
		if n == 3 {
			extended = record
			entry(0, 3, 0x05, extended/sector, (len(disk)-extended)/sector)
		} else {
			entry(at(n-1)-1<<19, 1, 0x05, (record-extended)/sector, len(p.data)/sector)
		}
		entry(record, 0, p.kind, (at(n)-record)/sector, len(p.data)/sector)
	}
	return disk
}

// gptDisk lays pieces one MiB apart behind a GUID partition table.
func gptDisk(sector int, pieces ...piece) []byte {
	le := binary.LittleEndian
	disk := make([]byte, 1<<20)
	table := make([]byte, 128*128)
	for n, p := range pieces {
		guid := p.guid
		if guid == nil {
			guid = bytes.Repeat([]byte{0xaf}, 16)
		}
		copy(table[n*128:], guid)
		le.PutUint64(table[n*128+32:], uint64(len(disk)/sector))
		le.PutUint64(table[n*128+40:], uint64((len(disk)+len(p.data))/sector-1))
		disk = append(append(disk, p.data...), make([]byte, 1<<20)...)
	}
	copy(disk[2*sector:], table)
	h := disk[sector : sector+92]
	copy(h, "EFI PART\x00\x00\x01\x00")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	disk[510], disk[511], disk[446+4] = 0x55, 0xaa, 0xee // the protective record
	le.PutUint32(disk[446+8:], 1)
	le.PutUint32(disk[446+12:], uint32(len(disk)/sector-1))
	return disk
}

// resealGPT makes the sums right after a change.
func resealGPT(disk []byte, sector int) []byte {
	le := binary.LittleEndian
	h := disk[sector : sector+92]
	le.PutUint32(h[88:], crc32.ChecksumIEEE(disk[2*sector:2*sector+128*128]))
	clear(h[16:20])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	return disk
}

func erofsOf(t testing.TB, text string) []byte {
	t.Helper()
	path, err := buildTars(t, layerTar(t, file("hello", text)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// showDisk gives what the file hello on an imported disk says.
func showDisk(t testing.TB, path, kind string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", kind, "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v\n%s", err, out)
	}
	defer func() { _ = exec.Command("umount", dir).Run() }()
	b, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestImportDisk(t *testing.T) {
	small, large, ero := ext4Of(t, 8, "small"), ext4Of(t, 16, "large"), erofsOf(t, "erofs")
	boot := make([]byte, 3<<20)
	copy(boot[0x52:], "FAT32   ")
	for name, c := range map[string]struct {
		disk       []byte
		kind, says string
	}{
		"bare ext4":           {small, "ext4", "small"},
		"bare erofs":          {ero, "erofs", "erofs"},
		"mbr":                 {mbrDisk(piece{0x83, nil, large}), "ext4", "large"},
		"mbr, the largest":    {mbrDisk(piece{0x0c, nil, boot}, piece{0x83, nil, small}, piece{0x83, nil, large}), "ext4", "large"},
		"mbr, logical":        {mbrDisk(piece{0x0c, nil, boot}, piece{0x0c, nil, boot}, piece{0x0c, nil, boot}, piece{0x83, nil, small}, piece{0x83, nil, large}), "ext4", "large"},
		"gpt":                 {gptDisk(512, piece{0, nil, boot}, piece{0, nil, small}), "ext4", "small"},
		"gpt, by its type":    {gptDisk(512, piece{0, nil, large}, piece{0, rootGUID, small}), "ext4", "small"},
		"gpt, sectors of 4 K": {gptDisk(4096, piece{0, nil, boot}, piece{0, nil, ero}), "erofs", "erofs"},
		"more than it needs":  {append(bytes.Clone(small), make([]byte, 5<<20)...), "ext4", "small"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, nil)
			img, err := s.ImportDisk(t.Context(), bytes.NewReader(c.disk), "my-disk", FormatRaw)
			if err != nil {
				t.Fatal(err)
			}
			if img.GetFsType() != c.kind || img.GetDigest() != img.GetDiskDigest() || img.GetSource() != "disk" || img.GetName() != "my-disk" ||
				img.GetConfig().GetArchitecture() != "amd64" || strings.Join(img.GetConfig().GetCommand(), " ") != "/sbin/init" {
				t.Errorf("%v", img)
			}
			_, path, err := s.Get(img.GetDigest())
			if err != nil {
				t.Fatal(err)
			}
			if got := showDisk(t, path, c.kind); got != c.says {
				t.Errorf("it is %q", got)
			}
			if l := left(t, s); len(l) != 0 {
				t.Errorf("left %v", l)
			}
		})
	}
}

func TestImportDiskRefused(t *testing.T) {
	le := binary.LittleEndian
	good := ext4Of(t, 8, "x")
	changed := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	magic := func(at int, text string) []byte {
		b := make([]byte, 1<<20)
		copy(b[at:], text)
		return b
	}
	gpt := func(f func(b []byte)) []byte {
		b := gptDisk(512, piece{0, nil, good})
		f(b)
		return b
	}
	circle := mbrDisk(piece{0x0c, nil, magic(0, "")}, piece{0x0c, nil, magic(0, "")}, piece{0x0c, nil, magic(0, "")}, piece{0x83, nil, magic(0, "")}, piece{0x83, nil, magic(0, "")})
	record := int(le.Uint32(circle[446+3*16+8:])) * sector
	le.PutUint32(circle[record+446+16+8:], 0) // the chain leads to its own beginning
	for name, c := range map[string]struct {
		disk       []byte
		code, says string
	}{
		"nothing":               {nil, "image.disk", ""},
		"short":                 {[]byte("short"), "image.disk", ""},
		"zeros":                 {make([]byte, 1<<20), "image.disk", "no file system"},
		"text":                  {[]byte(random(1 << 20)), "image.disk", "no file system"},
		"xfs":                   {magic(0, "XFSB"), "image.disk_fs", "xfs"},
		"btrfs":                 {magic(0x10040, "_BHRfS_M"), "image.disk_fs", "btrfs"},
		"luks":                  {magic(0, "LUKS\xba\xbe"), "image.disk_fs", "encrypted"},
		"lvm":                   {magic(0x218, "LVM2 001"), "image.disk_fs", "LVM"},
		"qcow2 that says raw":   {magic(0, "QFI\xfb\x00\x00\x00\x03/etc/shadow"), "image.disk_fs", "qcow2"},
		"xfs in a partition":    {gptDisk(512, piece{0, nil, magic(0, "none")}, piece{0, nil, magic(0, "XFSB")}), "image.disk_fs", "xfs"},
		"nothing in partitions": {mbrDisk(piece{0x83, nil, magic(0, "none")}), "image.disk", "none of its 1 partitions"},
		"dirty":                 {changed(func(b []byte) { b[1024+96] |= ext4Recover }), "image.disk_dirty", "journal"},
		"encrypted files":       {changed(func(b []byte) { b[1024+98] |= 1 }), "image.disk", "features"},
		"journal elsewhere":     {changed(func(b []byte) { b[1024+96] |= ext4Journal }), "image.disk", "features"},
		"cut off":               {good[:7<<20], "image.disk", "does not fit"},
		"blocks of 64 K":        {changed(func(b []byte) { b[1024+24] = 6 }), "image.disk", "2^16"},
		"too many blocks":       {changed(func(b []byte) { le.PutUint32(b[1024+4:], 1<<31) }), "image.disk", ""},
		"erofs of 512":          {func() []byte { b := erofsOf(t, "x"); b[1024+12] = 9; return b }(), "image.disk_fs", "2^9"},
		"gpt, header":           {gpt(func(b []byte) { b[512+40] ^= 1 }), "image.disk", "damaged"},
		"gpt, table":            {gpt(func(b []byte) { b[1024+32] ^= 1 }), "image.disk", "damaged"},
		"gpt, outside":          {gpt(func(b []byte) { le.PutUint64(b[1024+40:], 1<<40); resealGPT(b, 512) }), "image.disk", "outside"},
		"gpt, backwards":        {gpt(func(b []byte) { le.PutUint64(b[1024+40:], 1); resealGPT(b, 512) }), "image.disk", "outside"},
		"gpt, many entries":     {gpt(func(b []byte) { le.PutUint32(b[512+80:], 1<<30); resealGPT(b, 512) }), "image.disk", "entries"},
		"gpt, far table":        {gpt(func(b []byte) { le.PutUint64(b[512+72:], 1<<60); resealGPT(b, 512) }), "image.disk", "entries"},
		"gpt, table at the end": {gpt(func(b []byte) { le.PutUint64(b[512+72:], uint64(len(b)/512)-1); resealGPT(b, 512) }), "image.disk", "cannot be read"},
		"mbr, outside":          {func() []byte { b := mbrDisk(piece{0x83, nil, good}); le.PutUint32(b[446+12:], 1<<30); return b }(), "image.disk", "outside"},
		"mbr, in a circle":      {circle, "image.disk", "endless"},
	} {
		s := newStore(t, nil)
		_, err := s.ImportDisk(t.Context(), bytes.NewReader(c.disk), "d", FormatRaw)
		if !problem.HasCode(err, c.code) || !strings.Contains(err.Error(), c.says) || problem.From(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
		if l := left(t, s); len(l) != 0 || len(s.List()) != 0 || s.budget.used != 0 {
			t.Errorf("%s: left %v, %v, %d", name, l, s.List(), s.budget.used)
		}
	}
	s := newStore(t, nil)
	if _, err := s.ImportDisk(t.Context(), bytes.NewReader(good), "d", "vmdk"); !problem.HasCode(err, "image.disk_format") {
		t.Error(err)
	}
	if _, err := s.ImportDisk(t.Context(), bytes.NewReader(good), "", FormatRaw); !problem.HasCode(err, "image.name") {
		t.Error(err)
	}
	s = newStore(t, func(c *Config) { c.BudgetBytes = 64 << 10 })
	if _, err := s.ImportDisk(t.Context(), bytes.NewReader(good), "d", FormatRaw); !problem.HasCode(err, "image.budget") || s.budget.used != 0 {
		t.Errorf("%v, %d", err, s.budget.used)
	}
}

// qcow2File makes one with the real tool.
func qcow2File(t testing.TB, raw []byte, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(from, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	args = append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), from, to)
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mixed is a disk of text, noise, zeros and an odd size.
func mixed() []byte {
	b := append([]byte(random(300_000)), make([]byte, 3<<20)...)
	b = append(b, bytes.Repeat([]byte("compressible "), 50_000)...)
	return append(append(b, make([]byte, 1<<20)...), random(10*512)...)[:5_000_192]
}

func TestQcow2(t *testing.T) {
	want := mixed()
	for name, args := range map[string][]string{
		"plain": nil, "version 2": {"-o", "compat=0.10"}, "zlib": {"-c"}, "zlib, version 2": {"-c", "-o", "compat=0.10"},
		"zstd": {"-c", "-o", "compression_type=zstd"}, "small clusters": {"-c", "-o", "cluster_size=512"},
		"large clusters": {"-c", "-o", "cluster_size=2M"}, "allocated": {"-S", "0", "-o", "preallocation=full"}, "metadata": {"-o", "preallocation=metadata"},
	} {
		raw := qcow2File(t, want, args...)
		q, err := openQcow2(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := io.ReadAll(io.NewSectionReader(q, 0, q.size))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		for _, at := range []int64{0, 511, 65_535, 299_990, 3_400_000, 4_999_000} {
			b := make([]byte, 70_000)
			n, err := q.ReadAt(b, at)
			if !bytes.Equal(b[:n], want[at:at+int64(n)]) || n < len(b) && err != io.EOF {
				t.Errorf("%s: at %d: %d, %v", name, at, n, err)
			}
		}
	}
	// As an image.
	s := newStore(t, nil)
	disk := qcow2File(t, gptDisk(512, piece{0, nil, ext4Of(t, 8, "hello")}), "-c")
	img, err := s.ImportDisk(t.Context(), bytes.NewReader(disk), "q", FormatQcow2)
	if err != nil {
		t.Fatal(err)
	}
	if _, path, err := s.Get(img.GetDigest()); err != nil || showDisk(t, path, "ext4") != "hello" {
		t.Error(err)
	}
}

func TestQcow2Refused(t *testing.T) {
	be := binary.BigEndian
	dir := t.TempDir()
	tool := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command("qemu-img", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		b, err := os.ReadFile(filepath.Join(dir, args[len(args)-2]))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := qcow2File(t, mixed())
	squeezed := qcow2File(t, mixed(), "-c")
	changed := func(from []byte, f func(b []byte)) []byte {
		b := bytes.Clone(from)
		f(b)
		return b
	}
	l1 := int(be.Uint64(good[40:]))
	l2 := int(be.Uint64(good[l1:]) & qcow2OffsetMask)
	squeezedL2 := int(be.Uint64(squeezed[be.Uint64(squeezed[40:]):]) & qcow2OffsetMask)
	for name, c := range map[string]struct {
		disk []byte
		code string
	}{
		"backing file":        {tool("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", "backed", "1M"), "image.qcow2_feature"},
		"data file":           {tool("create", "-q", "-f", "qcow2", "-o", "data_file=data", "data.qcow2", "1M"), "image.qcow2_feature"},
		"extended tables":     {tool("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "extended", "1M"), "image.qcow2_feature"},
		"encrypted":           {changed(good, func(b []byte) { b[35] = 2 }), "image.qcow2_feature"},
		"nothing":             {nil, "image.qcow2"},
		"raw":                 {make([]byte, 1<<20), "image.qcow2"},
		"vmdk":                {append([]byte("KDMV"), make([]byte, 1<<20)...), "image.qcow2"},
		"version 4":           {changed(good, func(b []byte) { b[7] = 4 }), "image.qcow2"},
		"corrupt":             {changed(good, func(b []byte) { b[79] |= qcow2Corrupt }), "image.qcow2"},
		"unknown feature":     {changed(good, func(b []byte) { b[72] = 0x80 }), "image.qcow2_feature"},
		"unknown compression": {changed(good, func(b []byte) { b[79] |= qcow2Compression; b[104] = 9 }), "image.qcow2_feature"},
		"tiny clusters":       {changed(good, func(b []byte) { b[23] = 8 }), "image.qcow2"},
		"huge clusters":       {changed(good, func(b []byte) { b[23] = 63 }), "image.qcow2"},
		"no size":             {changed(good, func(b []byte) { clear(b[24:32]) }), "image.too_large"},
		"huge":                {changed(good, func(b []byte) { b[24] = 0x7f }), "image.too_large"},
		"short first table":   {changed(good, func(b []byte) { be.PutUint64(b[24:], 1<<39) }), "image.qcow2"},
		"first table outside": {changed(good, func(b []byte) { be.PutUint64(b[40:], 1<<40) }), "image.qcow2"},
		"first table at odds": {changed(good, func(b []byte) { b[47] = 3 }), "image.qcow2"},
		"table outside":       {changed(good, func(b []byte) { be.PutUint64(b[l1:], 1<<50) }), "image.qcow2"},
		"table at odds":       {changed(good, func(b []byte) { be.PutUint64(b[l1:], 512) }), "image.qcow2"},
		"cluster outside":     {changed(good, func(b []byte) { be.PutUint64(b[l2:], 1<<50) }), "image.qcow2"},
		"cluster at odds":     {changed(good, func(b []byte) { be.PutUint64(b[l2:], 1<<20+512) }), "image.qcow2"},
		"compressed outside":  {changed(squeezed, func(b []byte) { be.PutUint64(b[squeezedL2+320:], qcow2Compressed|1<<50) }), "image.qcow2"},
		"compressed damaged":  {changed(squeezed, func(b []byte) { be.PutUint64(b[squeezedL2:], qcow2Compressed|1) }), "image.qcow2"},
	} {
		s := newStore(t, nil)
		if _, err := s.ImportDisk(t.Context(), bytes.NewReader(c.disk), "q", FormatQcow2); !problem.HasCode(err, c.code) {
			// What the header does not tell is met when it is read.
			q, err2 := openQcow2(bytes.NewReader(c.disk), int64(len(c.disk)))
			if err2 == nil {
				_, err2 = io.Copy(io.Discard, io.NewSectionReader(q, 0, q.size))
			}
			if !problem.HasCode(err2, c.code) {
				t.Errorf("%s: %v, %v", name, err, err2)
			}
		}
		if l := left(t, s); len(l) != 0 {
			t.Errorf("%s: left %v", name, l)
		}
	}
}
