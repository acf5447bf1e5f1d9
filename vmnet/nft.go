package vmnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// nftTimeout bounds one run of nft: a thousand times what a hundred VMs need.
const nftTimeout = 30 * time.Second

// String gives the tables as a person reads them, without what changes nothing.
func (ts tables) String() string {
	var b strings.Builder
	for _, t := range ts {
		fmt.Fprintf(&b, "table %s %s\n", t.family, t.name)
		for _, s := range t.sets {
			fmt.Fprintf(&b, "  %s %s: %s\n", s.word(), s.name, s.kind)
			for _, e := range s.sorted() {
				fmt.Fprintf(&b, "    %s\n", e)
			}
		}
		for _, c := range t.chains {
			fmt.Fprintf(&b, "  chain %s", c.name)
			if c.hook != "" {
				fmt.Fprintf(&b, " %s", c.hook)
			}
			b.WriteByte('\n')
			for _, r := range c.rules {
				fmt.Fprintf(&b, "    %s\n", r)
			}
		}
	}
	return b.String()
}

// script gives the one transaction that makes the tables what they shall be, where had
// is what nft lists of them now and made what they were made of, as far as that is known.
// Chains and elements that stay as they are have no part in it: a packet that meets a
// transaction may find neither what went nor what came, even where both are the same.
// Where all was flushed and made again, Linux 6.18 lost one packet in some 300,000.
func (ts tables) script(had map[string]listing, made map[string]source) string {
	var b strings.Builder
	for _, t := range ts {
		id := t.family + " " + t.name
		old, there := had[id]
		if !there {
			fmt.Fprintf(&b, "add table %s { comment %q ; }\n", id, t.comment)
		}
		t.remove(&b, id, old, made[id])
		t.add(&b, id, made[id])
	}
	return b.String()
}

// remove writes what goes, or is not known to be what it shall be.
func (t table) remove(b *strings.Builder, id string, old listing, made source) {
	var gone []string
	for _, name := range old.chains {
		i := slices.IndexFunc(t.chains, func(want chain) bool { return want.name == name })
		if i < 0 {
			gone = append(gone, name)
		}
		// One that shall be empty may have what somebody else added.
		if was, known := made["chain "+name]; i < 0 || !known || !slices.Equal(was, t.chains[i].rules) {
			fmt.Fprintf(b, "flush chain %s %s\n", id, name)
		}
	}
	for _, s := range old.sets {
		i := slices.IndexFunc(t.sets, func(want set) bool { return want.name == s.name && want.isMap == s.isMap })
		was, known := made[s.word()+" "+s.name]
		switch {
		case i < 0:
			fmt.Fprintf(b, "flush %s %s %s\n", s.word(), id, s.name)
			fmt.Fprintf(b, "delete %s %s %s\n", s.word(), id, s.name)
		case !known:
			fmt.Fprintf(b, "flush %s %s %s\n", s.word(), id, s.name)
		default:
			writeElements(b, "delete", id, s.name, without(was, t.sets[i].sorted()))
		}
	}
	for _, name := range gone {
		fmt.Fprintf(b, "delete chain %s %s\n", id, name)
	}
}

// add writes what is not there as it shall be.
func (t table) add(b *strings.Builder, id string, made source) {
	for _, c := range t.chains {
		fmt.Fprintf(b, "add chain %s %s", id, c.name)
		if c.hook != "" {
			fmt.Fprintf(b, " { %s }", c.hook)
		}
		b.WriteByte('\n')
	}
	for _, s := range t.sets {
		fmt.Fprintf(b, "add %s %s %s { %s ; }\n", s.word(), id, s.name, s.declared())
		writeElements(b, "add", id, s.name, without(s.sorted(), made[s.word()+" "+s.name]))
	}
	for _, c := range t.chains {
		if slices.Equal(made["chain "+c.name], c.rules) {
			continue
		}
		for _, r := range c.rules {
			fmt.Fprintf(b, "add rule %s %s %s\n", id, c.name, r)
		}
	}
}

func writeElements(b *strings.Builder, verb, id, set string, elements []string) {
	if len(elements) > 0 {
		fmt.Fprintf(b, "%s element %s %s { %s }\n", verb, id, set, strings.Join(elements, ", "))
	}
}

// without gives the elements of a that b, which is in order, has not.
func without(a, b []string) []string {
	var only []string
	for _, e := range a {
		if _, both := slices.BinarySearch(b, e); !both {
			only = append(only, e)
		}
	}
	return only
}

func (s set) word() string {
	if s.isMap {
		return "map"
	}
	return "set"
}

// source is what a table is made of: the rules of each "chain NAME" and the elements of
// each "set NAME" or "map NAME", in order.
type source map[string][]string

// sources gives what the tables are made of.
func (ts tables) sources() map[string]source {
	all := map[string]source{}
	for _, t := range ts {
		of := source{}
		for _, s := range t.sets {
			of[s.word()+" "+s.name] = s.sorted()
		}
		for _, c := range t.chains {
			of["chain "+c.name] = c.rules
		}
		all[t.family+" "+t.name] = of
	}
	return all
}

// declared gives the type as it is declared.
func (s set) declared() string {
	if strings.HasPrefix(s.kind, "typeof ") {
		return s.kind
	}
	return "type " + s.kind
}

// sum tells one set of tables from another.
func (ts tables) sum() string {
	sum := sha256.Sum256([]byte(ts.script(nil, nil)))
	return hex.EncodeToString(sum[:])
}

// listing is a table as nft lists it.
type listing struct {
	text   string
	owner  string
	sets   []set // names only
	chains []string
}

// block gives a chain, set or map of the listing by its word and name.
func (l listing) block(name string) (text string, there bool) {
	_, rest, there := strings.Cut(l.text, "\n\t"+name+" {")
	text, _, _ = strings.Cut(rest, "\n\t}\n")
	return text, there
}

var listed = regexp.MustCompile(`(?m)^\t(chain|set|map) (\S+) \{$`)

func parseListing(text string) listing {
	l := listing{text: text}
	for _, m := range listed.FindAllStringSubmatch(text, -1) {
		if m[1] == "chain" {
			l.chains = append(l.chains, m[2])
		} else {
			l.sets = append(l.sets, set{name: m[2], isMap: m[1] == "map"})
		}
	}
	if m := regexp.MustCompile(`(?m)^\tcomment "blixard owner=([^"]*)"$`).FindStringSubmatch(text); m != nil {
		l.owner = m[1]
	}
	return l
}

// nft runs the program with a script on its standard input.
func nft(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, nftTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// listTables gives the tables of that name that are there, by family and name.
func listTables(ctx context.Context, name string) (map[string]listing, error) {
	all, err := nft(ctx, "", "list", "tables")
	if err != nil {
		return nil, err
	}
	found := map[string]listing{}
	for _, family := range []string{"bridge", "inet"} {
		id := family + " " + name
		if !slices.Contains(strings.Split(all, "\n"), "table "+id) {
			continue
		}
		// One by one: nft 1.0.6 can't list two tables in one run.
		text, err := nft(ctx, "", "-s", "list", "table", family, name)
		if err != nil {
			return nil, err
		}
		found[id] = parseListing(text)
	}
	return found, nil
}

// generation gives the number of the newest transaction of nftables in this
// network namespace, whoever made it; 0 means unknown.
func generation() uint32 {
	const getGen, genID = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, 1
	req := nl.NewNetlinkRequest(getGen, 0)
	req.AddRawData([]byte{unix.AF_UNSPEC, 0, 0, 0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(msgs) == 0 || len(msgs[0]) < 4 {
		return 0
	}
	attrs, err := nl.ParseRouteAttr(msgs[0][4:])
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == genID && len(a.Value) == 4 {
			return binary.BigEndian.Uint32(a.Value)
		}
	}
	return 0
}

// applyTables makes the tables of a name what they shall be, in one transaction; made is
// what they were made of, as far as that is known.
// A table of another kind of blixard may have sets that can't become these; then
// both are made anew, still in one transaction.
func applyTables(ctx context.Context, want tables, had map[string]listing, made map[string]source) error {
	if _, err := nft(ctx, want.script(had, made), "-f", "-"); err == nil {
		return nil
	} else if len(had) == 0 {
		return problem.New(problem.Internal, "network.rules_refused", "the kernel refuses the rules").WithCause(err)
	}
	var b strings.Builder
	for id := range had {
		fmt.Fprintf(&b, "delete table %s\n", id)
	}
	if _, err := nft(ctx, b.String()+want.script(nil, nil), "-f", "-"); err != nil {
		return problem.New(problem.Internal, "network.rules_refused", "the kernel refuses the rules").WithCause(err)
	}
	return nil
}

// deleteTables removes tables with all that is in them.
func deleteTables(ctx context.Context, had map[string]listing) error {
	if len(had) == 0 {
		return nil
	}
	var b strings.Builder
	for id := range had {
		fmt.Fprintf(&b, "delete table %s\n", id)
	}
	_, err := nft(ctx, b.String(), "-f", "-")
	return err
}

// tableDrifts says what of a table is other than it was when it was made.
func tableDrifts(id, was, is string) []string {
	var drifts []string
	missing, added := linesOf(was), linesOf(is)
	for _, l := range difference(missing, added) {
		drifts = append(drifts, fmt.Sprintf("nftables %s: %s: %q is missing", id, l.block, l.text))
	}
	for _, l := range difference(added, missing) {
		drifts = append(drifts, fmt.Sprintf("nftables %s: %s: %q was added", id, l.block, l.text))
	}
	if len(drifts) == 0 && was != is {
		drifts = append(drifts, fmt.Sprintf("nftables %s: the order of the rules changed", id))
	}
	return drifts
}

// ruleLine is a line of a listing with the chain or set it is in.
type ruleLine struct{ block, text string }

func linesOf(text string) []ruleLine {
	var lines []ruleLine
	block, elements := "", false
	for _, l := range strings.Split(text, "\n") {
		switch trimmed := strings.TrimSpace(l); {
		case trimmed == "" || trimmed == "}":
		case strings.HasSuffix(trimmed, "{") && !strings.Contains(trimmed, "elements"):
			block = strings.TrimSuffix(trimmed, " {")
		case strings.HasPrefix(trimmed, "elements = {") || elements:
			elements = !strings.HasSuffix(trimmed, "}")
			trimmed = strings.TrimSuffix(strings.TrimPrefix(trimmed, "elements = {"), "}")
			for _, e := range strings.Split(trimmed, ",") {
				if e = strings.TrimSpace(e); e != "" {
					lines = append(lines, ruleLine{block, e})
				}
			}
		default:
			lines = append(lines, ruleLine{block, trimmed})
		}
	}
	return lines
}

// difference gives the lines of a that b has not, or not as often.
func difference(a, b []ruleLine) []ruleLine {
	count := map[ruleLine]int{}
	for _, l := range b {
		count[l]++
	}
	var only []ruleLine
	for _, l := range a {
		if count[l]--; count[l] < 0 {
			only = append(only, l)
		}
	}
	return only
}
