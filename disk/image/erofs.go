package image

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The form of erofs on disk, as Linux 5.15 and newer read it: no compression, one
// device, every inode in its long form. The kernel's
// fs/erofs/erofs_fs.h defines it.
const (
	erofsMagic       = 0xE0F5E1E2
	erofsSuperOffset = 1024
	erofsInodeBytes  = 64
	erofsSlotBytes   = 32 // inodes are counted in these
	erofsDirentBytes = 12
	erofsBlockBits   = 12

	erofsCompatChecksum = 1
	erofsCompatMTime    = 2
	erofsChunkedFile    = 4

	// How the bytes of a file lie: in a row; in a row but for a tail beside the
	// inode; in chunks with a table beside the inode.
	erofsPlain   = 0
	erofsInline  = 2
	erofsChunked = 4
)

// erofsXattrs are the names that the format has numbers for: all that Linux keeps
// in a file system. Others, which only remote file systems have, are left out.
var erofsXattrs = []struct {
	prefix string
	whole  bool
	index  byte
}{
	{"user.", false, 1},
	{"system.posix_acl_access", true, 2},
	{"system.posix_acl_default", true, 3},
	{"trusted.", false, 4},
	{"security.", false, 6},
}

// erofsXattr gives the number of a name and what is left of it to be written.
func erofsXattr(name string) (index byte, suffix string, ok bool) {
	for _, x := range erofsXattrs {
		rest, found := strings.CutPrefix(name, x.prefix)
		if found && (rest == "") == x.whole && len(rest) <= 255 {
			return x.index, rest, true
		}
	}
	return 0, "", false
}

// xattrBytes is what the attributes of a file take behind its inode.
func xattrBytes(xattrs []xattr) int {
	if len(xattrs) == 0 {
		return 0
	}
	n := 12
	for _, x := range xattrs {
		_, suffix, _ := erofsXattr(x.name)
		n += (4 + len(suffix) + len(x.value) + 3) &^ 3
	}
	return n
}

// inlineMax is how many bytes of content may lie behind an inode: all of it must
// fit into one block.
func inlineMax(xattrs []xattr) int { return max(0, blockBytes-erofsInodeBytes-xattrBytes(xattrs)) }

// erofs writes what belongs to the file system beside the content of files.
type erofs struct {
	contents *contents
	meta     slots
	// order of the inodes, the root first.
	order []*inode
	// tails are the ends of directories that lie behind their inodes.
	tails map[*inode][]byte
}

// slots gives places to inodes: small ones never cross the end of a block.
type slots struct {
	blocks uint32
	// open blocks by the slots that are free at their ends.
	open [blockBytes/erofsSlotBytes + 1][]uint32
}

const slotsOfBlock = blockBytes / erofsSlotBytes

// place gives the number of the first slot for so many bytes.
func (s *slots) place(size int) uint64 {
	need := (size + erofsSlotBytes - 1) / erofsSlotBytes
	if need <= slotsOfBlock {
		for free := need; free <= slotsOfBlock; free++ {
			if n := len(s.open[free]); n > 0 {
				block := s.open[free][n-1]
				s.open[free] = s.open[free][:n-1]
				s.keep(block, free-need)
				return uint64(block)*slotsOfBlock + uint64(slotsOfBlock-free)
			}
		}
	}
	block := s.blocks
	blocks := (need + slotsOfBlock - 1) / slotsOfBlock
	s.blocks += uint32(blocks)
	s.keep(s.blocks-1, blocks*slotsOfBlock-need)
	return uint64(block) * slotsOfBlock
}

func (s *slots) keep(block uint32, free int) {
	if free > 1 { // an inode takes two
		s.open[free] = append(s.open[free], block)
	}
}

// writeErofs completes the disk: directories and inodes of the tree behind the
// content, and the superblock. It gives the size of the disk.
func writeErofs(t *tree, c *contents, uuid [16]byte) (int64, error) {
	e := &erofs{contents: c, tails: map[*inode][]byte{}}
	e.meta.place(erofsInodeBytes) // the number 0 is no inode's
	e.number(t.root, t.root)
	for _, i := range e.order {
		if err := e.writeRows(i); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(c.flush(), c.flushTails()); err != nil {
		return 0, err
	}
	meta, err := c.extend(e.meta.blocks)
	if err != nil {
		return 0, err
	}
	if err := e.writeInodes(meta); err != nil {
		return 0, err
	}
	if err := c.punch(); err != nil {
		return 0, err
	}
	size := int64(c.next) * blockBytes
	if err := c.f.Truncate(size); err != nil {
		return 0, err
	}
	_, err = c.f.WriteAt(e.superblock(t.root, meta, uuid), erofsSuperOffset)
	return size, err
}

// number gives places to an inode and all below it.
func (e *erofs) number(i, up *inode) {
	if i.nid != 0 { // one more name of a file
		return
	}
	size := erofsInodeBytes + xattrBytes(i.xattrs)
	switch i.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		i.up, i.nlink = up, 2
		last := 0
		i.size, last = dirBytes(i)
		size += e.inline(i, last)
	case unix.S_IFLNK:
		i.size = uint64(len(i.target))
		size += e.inline(i, len(i.target))
	default:
		size += int(i.content.tailBytes) + 4*len(i.content.chunks)
	}
	i.nid = e.meta.place(size)
	e.order = append(e.order, i)
	for _, name := range i.names() {
		child := i.entries[name]
		if child.isDir() {
			i.nlink++
		}
		e.number(child.inode, i)
	}
}

// inline is how much of the last block of a directory or link lies behind its inode.
func (e *erofs) inline(i *inode, last int) int {
	if last > inlineMax(i.xattrs) {
		return 0
	}
	i.content.tailBytes = uint16(last)
	return last
}

// dirNames are the names that a directory has on disk, in their order there.
func dirNames(i *inode) []string {
	names := append(i.names(), ".", "..")
	slices.Sort(names)
	return names
}

// dirBytes is the size of a directory, and how much of that is in its last block.
func dirBytes(i *inode) (size uint64, last int) {
	for _, name := range dirNames(i) {
		if last+erofsDirentBytes+len(name) > blockBytes {
			size, last = size+blockBytes, 0
		}
		last += erofsDirentBytes + len(name)
	}
	return size + uint64(last), last
}

var erofsTypes = map[uint16]byte{
	unix.S_IFREG: 1, unix.S_IFDIR: 2, unix.S_IFCHR: 3, unix.S_IFBLK: 4, unix.S_IFIFO: 5, unix.S_IFSOCK: 6, unix.S_IFLNK: 7,
}

// dirData gives a directory as it is on disk. Each block begins with its entries,
// of 12 bytes each, and their names follow.
func dirData(i *inode) []byte {
	names := dirNames(i)
	data := make([]byte, 0, i.size)
	for len(names) > 0 {
		n, used := 0, 0
		for n < len(names) && used+erofsDirentBytes+len(names[n]) <= blockBytes {
			used += erofsDirentBytes + len(names[n])
			n++
		}
		at := n * erofsDirentBytes
		for _, name := range names[:n] {
			child := i
			switch name {
			case ".":
			case "..":
				child = i.up
			default:
				child = i.entries[name].inode
			}
			data = binary.LittleEndian.AppendUint64(data, child.nid)
			data = binary.LittleEndian.AppendUint16(data, uint16(at))
			data = append(data, erofsTypes[child.mode&unix.S_IFMT], 0)
			at += len(name)
		}
		for _, name := range names[:n] {
			data = append(data, name...)
		}
		if names = names[n:]; len(names) > 0 {
			data = append(data, make([]byte, blockBytes-used)...)
		}
	}
	return data
}

// writeRows writes what a directory or a link has beside its inode.
func (e *erofs) writeRows(i *inode) error {
	var data []byte
	switch i.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		data = dirData(i)
	case unix.S_IFLNK:
		data = []byte(i.target)
	default:
		return nil
	}
	whole := len(data) - int(i.content.tailBytes)
	if whole < len(data) {
		e.tails[i] = data[whole:]
	}
	if whole == 0 {
		return nil
	}
	blocks := uint32(blocksOf(uint64(whole)))
	block, err := e.contents.extend(blocks)
	if err != nil {
		return err
	}
	i.content.block, i.content.blocks = block, blocks
	return e.contents.write(int64(block)*blockBytes, data[:whole])
}

// writeInodes writes all inodes in the order of their places.
func (e *erofs) writeInodes(meta uint32) error {
	slices.SortFunc(e.order, func(a, b *inode) int { return cmp.Compare(a.nid, b.nid) })
	w := bufio.NewWriterSize(io.NewOffsetWriter(e.contents.f, int64(meta)*blockBytes), pendingBytes)
	var record []byte
	at := uint64(0)
	for _, i := range e.order {
		place := i.nid * erofsSlotBytes
		if _, err := w.Write(e.contents.zero[:place-at]); err != nil {
			return err
		}
		var err error
		if record, err = e.appendRecord(record[:0], i); err != nil {
			return err
		}
		if _, err := w.Write(record); err != nil {
			return err
		}
		at = place + uint64(len(record))
	}
	return w.Flush()
}

// appendRecord gives an inode with all that lies behind it.
func (e *erofs) appendRecord(b []byte, i *inode) ([]byte, error) {
	le := binary.LittleEndian
	layout, where := uint16(erofsPlain), i.content.block
	switch kind := i.mode & unix.S_IFMT; {
	case kind == unix.S_IFCHR || kind == unix.S_IFBLK:
		where = i.rdev
	case i.content.chunks != nil:
		layout, where = erofsChunked, uint32(i.content.chunkBits-erofsBlockBits)
	case i.content.tailBytes > 0:
		layout = erofsInline
	}
	attributes := 0
	if n := xattrBytes(i.xattrs); n > 0 {
		attributes = (n-12)/4 + 1
	}
	b = le.AppendUint16(b, 1|layout<<1)
	b = le.AppendUint16(b, uint16(attributes))
	b = le.AppendUint16(b, i.mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, i.size)
	b = le.AppendUint32(b, where)
	b = le.AppendUint32(b, uint32(i.nid)) // what stat shows to 32-bit programs
	b = le.AppendUint32(b, i.uid)
	b = le.AppendUint32(b, i.gid)
	b = le.AppendUint64(b, uint64(i.mtime))
	b = le.AppendUint32(b, i.nsec)
	b = le.AppendUint32(b, i.nlink)
	b = append(b, make([]byte, 16)...)
	b = appendXattrs(b, i.xattrs)
	for _, block := range i.content.chunks {
		b = le.AppendUint32(b, block)
	}
	if tail, ok := e.tails[i]; ok {
		return append(b, tail...), nil
	}
	if n := int(i.content.tailBytes); n > 0 {
		b = slices.Grow(b, n)[:len(b)+n]
		if _, err := e.contents.tails.ReadAt(b[len(b)-n:], i.content.tail); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendXattrs(b []byte, xattrs []xattr) []byte {
	if len(xattrs) == 0 {
		return b
	}
	b = append(b, make([]byte, 12)...) // none of them is shared between files
	for _, x := range xattrs {
		index, suffix, _ := erofsXattr(x.name)
		b = append(b, byte(len(suffix)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.value)))
		b = append(append(b, suffix...), x.value...)
		for len(b)%4 != 0 { // inodes begin at multiples of 4 as well
			b = append(b, 0)
		}
	}
	return b
}

// superblock gives block 0 from where the superblock begins.
func (e *erofs) superblock(root *inode, meta uint32, uuid [16]byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, blockBytes-erofsSuperOffset)
	le.PutUint32(b[0:], erofsMagic)
	le.PutUint32(b[8:], erofsCompatChecksum|erofsCompatMTime)
	b[12] = erofsBlockBits
	le.PutUint16(b[14:], uint16(root.nid))
	le.PutUint64(b[16:], uint64(len(e.order)))
	le.PutUint32(b[36:], e.contents.next)
	le.PutUint32(b[40:], meta)
	copy(b[48:], uuid[:])
	copy(b[64:80], "image")
	for _, i := range e.order {
		if i.content.chunks != nil {
			le.PutUint32(b[80:], erofsChunkedFile)
			break
		}
	}
	// The format wants the sum as it is before the last step of CRC-32C.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
