// Package objectname takes the full names of VMs, groups, tasks and schedules apart and
// puts them together.
//
// The full name of an object of project default is its own name, such as web; that of an
// object of another project is PROJECT/NAME, such as shop/web. Full names are unique in the
// cluster, so each project has names of its own. It knows nothing of what there is: older
// versions stored objects of other projects under their own name alone, which reads here as
// one of project default.
package objectname
