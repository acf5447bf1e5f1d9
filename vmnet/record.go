package vmnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// record is what must be known after a restart.
type record struct {
	// Sysctls of the host that were changed, by path.
	Sysctls map[string]changed `json:"sysctls,omitempty"`
	// Rules is the sum of the rules that were made, Made what each table was made of and
	// Listings how nft listed it right after.
	Rules    string            `json:"rules,omitempty"`
	Made     map[string]source `json:"made,omitempty"`
	Listings map[string]string `json:"listings,omitempty"`
}

// changed is a sysctl before and after.
type changed struct {
	Was string `json:"was"`
	Set string `json:"set"`
}

// readRecord reads the file; one that is not there is an empty record.
func readRecord(file string) (record, error) {
	var r record
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read the network's record: %w", err)
	}
	return r, nil
}

func (r record) write(file string) error {
	text, err := json.Marshal(r)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = renameio.WriteFile(file, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the network's record: %w", err)
	}
	return nil
}

// before gives what the host's sysctls were.
func (r record) before() map[string]string {
	m := map[string]string{}
	for path, c := range r.Sysctls {
		m[path] = c.Was
	}
	return m
}

// matches reports whether the tables are as they were made.
func (r record) matches(had map[string]listing) bool {
	if len(had) != len(r.Listings) {
		return false
	}
	for id, text := range r.Listings {
		if had[id].text != text {
			return false
		}
	}
	return true
}

// made gives what of the tables is as it was made.
func (r record) made(had map[string]listing) map[string]source {
	same := map[string]source{}
	for id, l := range had {
		same[id] = source{}
		was := listing{text: r.Listings[id]}
		for name, of := range r.Made[id] {
			is, there := l.block(name)
			if made, _ := was.block(name); there && is == made {
				same[id][name] = of
			}
		}
	}
	return same
}

// ofHost reports whether a sysctl outlives what we make.
func (p planned) ofHost(path string) bool {
	_, ours := p.objects.links[sysctlLink(path)]
	return !ours
}

// rememberLocked writes down what the host's sysctls are before they are changed.
func (f *Fabric) rememberLocked(todo []change, plan planned) error {
	grew := false
	for path, value := range plan.objects.sysctls {
		if _, known := f.record.Sysctls[path]; known || !plan.ofHost(path) {
			continue
		}
		if is := readSysctl(path); is != "" && is != value {
			if f.record.Sysctls == nil {
				f.record.Sysctls = map[string]changed{}
			}
			f.record.Sysctls[path] = changed{Was: is, Set: value}
			grew = true
		}
	}
	if !grew {
		return nil
	}
	return f.record.write(f.recordFile())
}

// restoreLocked gives back the sysctls that are needed no longer, unless somebody
// else changed them since.
func (f *Fabric) restoreLocked(plan planned) error {
	var errs []error
	shrunk := false
	for path := range sortedKeys(f.record.Sysctls) {
		c := f.record.Sysctls[path]
		if _, needed := plan.objects.sysctls[path]; needed {
			continue
		}
		if readSysctl(path) == c.Set {
			if err := writeOptional(path, c.Was); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
				continue
			}
		}
		delete(f.record.Sysctls, path)
		shrunk = true
	}
	if shrunk {
		errs = append(errs, f.record.write(f.recordFile()))
	}
	return errors.Join(errs...)
}
