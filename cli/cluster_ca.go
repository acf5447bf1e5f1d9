package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

// authorityIDShown of the id of an authority is enough for people.
const authorityIDShown = 16

func (a *app) clusterCACommand() *cobra.Command {
	return noun("ca", "See and change the authority that signs certificates", nil, a.caShowCommand(), a.caRotateCommand(), a.caDropCommand())
}

func (a *app) caShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the authorities that are trusted, and whose certificates are theirs", Args: exactly(),
		Example: "  blixard cluster ca show\n  blixard cluster ca show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().GetAuthorities(ctx, &blixardv1.GetAuthoritiesRequest{})
				if err != nil {
					return err
				}
				return a.print(resp, func() error { return a.authorityTable(resp.GetAuthorities()) })
			})
		},
	}
}

func (a *app) authorityTable(all []*blixardv1.Authority) error {
	t := &table{header: []string{"AUTHORITY", "SIGNS", "ENDS", "MEMBERS"}, shrink: []int{3}}
	for _, one := range all {
		t.add(one.GetId()[:min(authorityIDShown, len(one.GetId()))], map[bool]string{true: "yes", false: "no"}[one.GetSigns()],
			one.GetNotAfter().AsTime().Format(time.DateOnly), strings.Join(one.GetMembers(), ", "))
	}
	return a.writeTable(t)
}

func (a *app) caRotateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate", Short: "Let a new authority sign, without a pause", Args: exactly(),
		Long: `Make a new authority, which signs certificates from then on, and wait until every member has one of it. The old one stays
trusted, and the new one's key is signed by it, so that no connection, credentials or token stops working. End the trust in
the old one with "blixard cluster ca drop" once people have new credentials.`,
		Example: "  blixard cluster ca rotate",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().RotateAuthority(ctx, &blixardv1.RotateAuthorityRequest{})
				if err != nil {
					return err
				}
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("waiting until every member has a certificate of the new authority")
				defer p.stop()
				if err := untilRenewed(ctx, c, p); err != nil {
					return err
				}
				p.stop()
				return a.printLine(resp.GetAuthority(), func() error {
					_, err := fmt.Fprintf(a.stdout, "authority %s signs, and every member has a certificate of it\n", resp.GetAuthority().GetId()[:authorityIDShown])
					return err
				})
			})
		},
	}
}

// untilRenewed waits until no member has a certificate of an old authority.
func untilRenewed(ctx context.Context, c *client.Client, p *progress) error {
	for {
		resp, err := c.Cluster().GetAuthorities(ctx, &blixardv1.GetAuthoritiesRequest{})
		if err != nil {
			return err
		}
		var late []string
		for _, one := range resp.GetAuthorities() {
			if !one.GetSigns() {
				late = append(late, one.GetMembers()...)
			}
		}
		if len(late) == 0 {
			return nil
		}
		p.set("waiting for new certificates of %s", strings.Join(late, ", "))
		select {
		case <-time.After(memberPoll):
		case <-ctx.Done():
			return problem.New(problem.Unavailable, "authority.slow", "the new authority signs, and these have no certificate of it yet: %s", strings.Join(late, ", ")).
				WithHint("they get one by themselves once they run; see `blixard cluster ca show`").WithCause(ctx.Err())
		}
	}
}

func (a *app) caDropCommand() *cobra.Command {
	return &cobra.Command{
		Use: "drop", Short: "End the trust in old authorities", Args: exactly(),
		Long: `End the trust in all authorities but the one that signs: certificates, credentials and tokens of the old ones are worth
nothing from then on. It is refused while a member has no certificate of the new one.`,
		Example: "  blixard cluster ca drop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().DropAuthorities(ctx, &blixardv1.DropAuthoritiesRequest{})
				if err != nil {
					return err
				}
				return a.print(resp, func() error { return a.authorityTable(resp.GetAuthorities()) })
			})
		},
	}
}
